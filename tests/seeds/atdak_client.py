from atdak import AtdakClient

client = AtdakClient()

# 普通调用
response = client.chat.completions.create(
    model="atdak-gpt-4", messages=[{"role": "user", "content": "写一首关于春天的诗"}]
)
print(response.choices[0].message.content)

# 流式调用
stream = client.chat.completions.create(
    model="atdak-gpt-4", messages=[{"role": "user", "content": "你好"}], stream=True
)
for chunk in stream:
    print(chunk.choices[0].delta.content, end="")
