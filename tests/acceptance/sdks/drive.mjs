// An application of openai-node: the forms of drive.py, which says what they are, and `tools`, which
// runs a loop of calls and results with a helper that only this SDK has.
//
//     node drive.mjs <folder with node_modules> <package>     (forms on standard input)

import { createRequire } from "node:module";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout } from "node:timers/promises";

const [folder, name] = process.argv.slice(2);
const { OpenAI, APIError } = createRequire(join(folder, "package.json"))(name);

const ENDED = new Set(["completed", "failed", "cancelled", "expired"]);

const FORMS = {
  async create(client, asked, seen) {
    const { data, response } = await client.chat.completions
      .create(asked.body, options(asked))
      .withResponse();
    seen.status = response.status;
    seen.headers = Object.fromEntries(response.headers);
    seen.completion = data;
  },
  async stream(client, asked, seen) {
    const body = { ...asked.body, stream: true };
    await read(await client.chat.completions.create(body, options(asked)), seen);
  },
  async resume(client, asked, seen) {
    const query = { stream: "true", starting_after: asked.after };
    await read(await client.get(`/chat/completions/${asked.id}`, { query, stream: true }), seen);
  },
  async retrieve(client, asked, seen) {
    seen.completion = await client.chat.completions.retrieve(asked.id);
  },
  async poll(client, asked, seen) {
    seen.polls = 0;
    do {
      const headers = { Prefer: "wait=5" };
      seen.completion = await client.chat.completions.retrieve(asked.id, { headers });
      seen.polls += 1;
    } while (!ENDED.has(seen.completion.status));
  },
  async cancel(client, asked, seen) {
    seen.completion = await client.post(`/chat/completions/${asked.id}/cancel`);
  },
  async list(client, asked, seen) {
    seen.ids = [];
    for await (const found of client.chat.completions.list(asked.query)) seen.ids.push(found.id);
  },
  async update(client, asked, seen) {
    const { id, metadata } = asked;
    seen.completion = await client.chat.completions.update(id, { metadata });
  },
  async delete(client, asked, seen) {
    seen.deleted = await client.chat.completions.delete(asked.id);
  },
  async messages(client, asked, seen) {
    seen.messages = [];
    const pages = client.chat.completions.messages.list(asked.id, { limit: asked.limit });
    for await (const message of pages) seen.messages.push(message);
  },
  async models(client, asked, seen) {
    seen.names = [];
    for await (const model of client.models.list()) seen.names.push(model.id);
    seen.model = await client.models.retrieve(asked.name);
  },
  async files(client, asked, seen) {
    const made = [];
    for (const name of asked.names) {
      const file = new File([asked.content], name);
      made.push(await client.files.create({ file, purpose: "batch" }));
    }
    seen.file = await client.files.waitForProcessing(made[0].id);
    seen.names = [];
    for await (const file of client.files.list({ limit: 1 })) seen.names.push(file.filename);
    seen.content = await (await client.files.content(made[0].id)).text();
    seen.deleted = await client.files.delete(made[0].id);
  },
  async batch(client, asked, seen) {
    const uploaded = new File([asked.content], "in.jsonl");
    const { id } = await client.files.create({ file: uploaded, purpose: "batch" });
    const endpoint = "/v1/chat/completions";
    const terms = { input_file_id: id, endpoint, completion_window: "24h" };
    seen.created = await client.batches.create({ ...terms, metadata: asked.metadata });
    do {
      await setTimeout(200);
      seen.batch = await client.batches.retrieve(seen.created.id);
    } while (!ENDED.has(seen.batch.status));
    if (seen.batch.output_file_id) {
      seen.output = await (await client.files.content(seen.batch.output_file_id)).text();
    }
    const other = await client.batches.create(terms);
    seen.cancelled = await client.batches.cancel(other.id);
    seen.ids = [];
    for await (const each of client.batches.list({ limit: 1 })) seen.ids.push(each.id);
  },
  async tools(client, asked, seen) {
    const tool = {
      name: "weather",
      parameters: { type: "object", properties: { city: { type: "string" } } },
      parse: JSON.parse,
      function: ({ city }) => `Rain in ${city}.`,
    };
    const body = { ...asked.body, tools: [{ type: "function", function: tool }] };
    const runner = client.chat.completions.runTools(body, options(asked));
    seen.said = await runner.finalContent();
    seen.roles = runner.messages.map(({ role }) => role);
  },
};

function options(asked) {
  const timeout = "timeout" in asked ? { timeout: asked.timeout * 1000 } : {};
  return { headers: asked.headers ?? {}, ...timeout };
}

async function read(chunks, seen) {
  seen.chunks = [];
  for await (const chunk of chunks) seen.chunks.push(chunk);
}

const clients = new Map();

function clientFor({ base_url: baseURL, key: apiKey }) {
  const known = `${apiKey} ${baseURL}`;
  if (!clients.has(known)) clients.set(known, new OpenAI({ baseURL, apiKey }));
  return clients.get(known);
}

async function perform(asked) {
  const seen = {};
  try {
    await FORMS[asked.form](clientFor(asked), asked, seen);
  } catch (error) {
    if (error instanceof APIError) {
      const { status = null, code, param = null, message } = error;
      seen.raised = { class: error.constructor.name, status, code, param, message };
    } else {
      seen.broke = error.stack;
    }
  }
  return seen;
}

for await (const line of createInterface({ input: process.stdin })) {
  console.log(JSON.stringify(await perform(JSON.parse(line))));
}
