import asyncio

import openai
import pytest

BEASTS = "bear fox owl hen dog cat pig cow rat bat elk ant bee eel emu yak".split()


@pytest.fixture
def requests(model):
    return [
        {
            "model": model,
            "messages": [{"role": "user", "content": f"Tell me a story about the {beast}. " * (1 + number % 5)}],
            "seed": number,
            "max_tokens": 10 + 5 * number,
            "temperature": (0, 0.7, 1.2)[number % 3],
        }
        for number, beast in enumerate(BEASTS)
    ]


def test_sixteen_at_once_say_what_each_says_alone(client, requests, server, key):
    alone = [client.chat.completions.create(**request).choices[0] for request in requests]

    async def all_at_once(stream):
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=300) as client:

            async def one(request):
                if not stream:
                    choice = (await client.chat.completions.create(**request)).choices[0]
                    return choice.message.content, choice.finish_reason
                text, reason = "", None
                async for chunk in await client.chat.completions.create(**request, stream=True):
                    text += chunk.choices[0].delta.content or ""
                    reason = chunk.choices[0].finish_reason or reason
                return text, reason

            return await asyncio.gather(*map(one, requests))

    said = [(choice.message.content, choice.finish_reason) for choice in alone]
    assert asyncio.run(all_at_once(stream=False)) == said
    assert asyncio.run(all_at_once(stream=True)) == said
    assert len({text for text, _ in said}) == len(BEASTS)
