"""Calls a server with one of the public clients, as its documentation says, with nothing but the address changed.

In: the client's name, the server's address, a picture. Out: JSON on standard output, a list of vectors for each case, and under
"refused" the words the client gives its user for a request that is wrong.
"""

import base64
import json
import os
import sys

# None of them may ask anybody else.
os.environ.update(
    HAYSTACK_TELEMETRY_ENABLED="False",
    HF_HUB_DISABLE_TELEMETRY="1",
    LITELLM_LOCAL_MODEL_COST_MAP="True",
    LANGCHAIN_TRACING_V2="false",
)

NAME, URL, PICTURE = sys.argv[1:4]
V1 = URL + "/v1"
MODEL = "model"
TEXTS = ["hello", "a longer text"]


def picture():
    with open(PICTURE, "rb") as file:
        return "data:image/png;base64," + base64.b64encode(file.read()).decode()


def refused(call, kind):
    try:
        call()
    except kind as error:
        return str(error)
    raise AssertionError("the request was not refused")


def openai():
    import openai
    from openai.types import CreateEmbeddingResponse

    client = openai.OpenAI(base_url=V1, api_key="none")

    def vectors(**more):
        return [d.embedding for d in client.embeddings.create(model=MODEL, **more).data]

    parts = [{"type": "image_url", "image_url": {"url": picture()}}, {"type": "text", "text": "hello"}]
    # vLLM's documented request for this model.
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Represent the user's input."}]},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": [{"type": "text", "text": ""}]},
    ]
    recipe = {
        "model": MODEL,
        "messages": messages,
        "encoding_format": "float",
        "continue_final_message": True,
        "add_special_tokens": True,
    }
    answer = client.post("/embeddings", cast_to=CreateEmbeddingResponse, body=recipe)
    return {
        "texts": vectors(input=TEXTS),
        "query": vectors(input="hello", extra_body={"input_type": "query"}),
        "short": vectors(input="hello", dimensions=64),
        "fused": vectors(input=[{"content": parts}]),
        "vllm": [d.embedding for d in answer.data],
        "refused": refused(lambda: vectors(input="hello", dimensions=1), openai.BadRequestError),
    }


def cohere():
    import cohere

    client = cohere.ClientV2(api_key="none", base_url=URL)

    def vectors(**more):
        return client.embed(model=MODEL, **more).embeddings.float_

    def wrong():
        vectors(texts=["hello"], input_type="search_query", output_dimension=1)

    content = [
        {"type": "image_url", "image_url": {"url": picture()}},
        {"type": "text", "text": "hello"},
    ]
    ranked = client.rerank(model="judge", query="hello", documents=TEXTS[::-1])
    nothing = refused(lambda: client.rerank(model="judge", query="hello", documents=[]), cohere.BadRequestError)
    assert "documents is an empty list" in nothing, nothing
    return {
        "texts": vectors(texts=TEXTS, input_type="search_document", embedding_types=["float", "int8"]),
        "query": vectors(texts=["hello"], input_type="search_query"),
        "short": vectors(texts=["hello"], input_type="search_document", output_dimension=64),
        "picture": vectors(images=[picture()], input_type="image", embedding_types=["float"]),
        "fused": vectors(inputs=[{"content": content}], input_type="search_document"),
        "ranks": [[r.index, r.relevance_score] for r in ranked.results],
        "refused": refused(wrong, cohere.BadRequestError),
    }


def voyageai():
    import PIL.Image
    import voyageai

    client = voyageai.Client(api_key="none", base_url=V1)

    def vectors(inputs, **more):
        return client.multimodal_embed(inputs, model=MODEL, **more).embeddings

    image = PIL.Image.open(PICTURE)
    content = [{"type": "image_base64", "image_base64": picture()}, {"type": "text", "text": "hello"}]
    return {
        "texts": vectors([[text] for text in TEXTS], input_type="document"),
        "query": vectors([["hello"]], input_type="query"),
        "short": vectors([["hello"]], output_dimension=64),
        "picture": vectors([[image]]),
        "fused": vectors([{"content": content}]),
        # Its client for texts speaks to the OpenAI route.
        "plain": client.embed(TEXTS, model=MODEL, input_type="document").embeddings,
        "refused": refused(lambda: vectors([["hello"]], output_dimension=1), voyageai.error.InvalidRequestError),
    }


def dashscope():
    import dashscope

    dashscope.base_http_api_url = URL + "/api/v1"

    def call(contents, **more):
        return dashscope.MultiModalEmbedding.call(model=MODEL, input=contents, api_key="none", **more)

    def vectors(contents, **more):
        answer = call(contents, **more)
        assert answer.status_code == 200, answer
        return [e["embedding"] for e in answer.output["embeddings"]]

    wrong = call([{"text": "hello"}], dimension=1)
    assert wrong.status_code == 400 and wrong.code == "invalid_dimensions" and wrong.request_id, wrong
    return {
        "texts": vectors([{"text": text} for text in TEXTS]),
        "short": vectors([{"text": "hello"}], dimension=64),
        "picture": vectors([{"image": picture()}]),
        "fused": vectors([{"text": "hello"}, {"image": picture()}], enable_fusion=True),
        "refused": wrong.message,
    }


def langchain_openai():
    import openai
    from langchain_openai import OpenAIEmbeddings

    def client(**more):
        # Texts rather than the tokens of OpenAI's own tokenizer.
        return OpenAIEmbeddings(model=MODEL, base_url=V1, api_key="none", check_embedding_ctx_length=False, **more)

    return {
        "texts": client().embed_documents(TEXTS),
        "query": [client(model_kwargs={"extra_body": {"input_type": "query"}}).embed_query("hello")],
        "short": [client(dimensions=64).embed_query("hello")],
        "refused": refused(lambda: client(dimensions=1).embed_query("hello"), openai.BadRequestError),
    }


def llama_index():
    import openai
    from llama_index.embeddings.openai import OpenAIEmbedding

    def client(**more):
        return OpenAIEmbedding(model_name=MODEL, api_base=V1, api_key="none", max_retries=0, **more)

    return {
        "texts": client().get_text_embedding_batch(TEXTS),
        "short": [client(dimensions=64).get_text_embedding("hello")],
        "refused": refused(lambda: client(dimensions=1).get_text_embedding("hello"), openai.BadRequestError),
    }


def litellm():
    import litellm

    def vectors(**more):
        answer = litellm.embedding(model="openai/" + MODEL, api_base=V1, api_key="none", **more)
        return [d["embedding"] for d in answer.data]

    def wrong():
        vectors(input=["hello"], encoding_format="none of these")

    return {
        "texts": vectors(input=TEXTS, encoding_format="float"),
        "refused": refused(wrong, litellm.BadRequestError),
    }


def haystack():
    import openai
    from haystack import Document
    from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
    from haystack.utils import Secret

    options = {"api_key": Secret.from_token("none"), "model": MODEL, "api_base_url": V1}
    documents = OpenAIDocumentEmbedder(progress_bar=False, **options)
    documents = documents.run(documents=[Document(content=text) for text in TEXTS])["documents"]

    def wrong():
        OpenAITextEmbedder(dimensions=1, **options).run("hello")

    return {
        "texts": [document.embedding for document in documents],
        "short": [OpenAITextEmbedder(dimensions=64, **options).run("hello")["embedding"]],
        "refused": refused(wrong, openai.BadRequestError),
    }


def huggingface_hub():
    from huggingface_hub import InferenceClient
    from huggingface_hub.errors import HfHubHTTPError

    client = InferenceClient(model=URL + "/embed")

    def vectors(text, **more):
        return client.feature_extraction(text, **more).tolist()

    return {
        "texts": vectors(TEXTS, normalize=True, truncate=True, truncation_direction="right"),
        "query": vectors("hello", prompt_name="query"),
        "short": vectors("hello", dimensions=64),
        "refused": refused(lambda: vectors("hello", dimensions=1), HfHubHTTPError),
    }


print(json.dumps(globals()[NAME]()))
