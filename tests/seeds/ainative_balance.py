balance = requests.get(
    "https://api.ainative.studio/api/v1/public/credits/balance",
    headers={"X-API-Key": "ak_your_key"},
).json()
print(f"Remaining: {balance['remaining_credits']}")
