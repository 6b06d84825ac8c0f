curl https://api.atdak.com/v1/chat/completions \
  -H "Authorization: Bearer YOUR_API_KEY" \
  -H "Content-Type: application/json" \
  -d '{
    "model": "atdak-gpt-4",
    "messages": [{"role": "user", "content": "你好"}],
    "stream": true
  }'
