//! What is answered, and in which shape. The rest is tested with OpenAI's own client.

use crate::client::{Server, story};
use serde_json::{Value, json};
use tritone_runtime::template::Message;
use tritone_server::http::Origins;

fn chat(fields: Value) -> Value {
    let mut body = json!({
        "model": "story", "messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 12, "temperature": 0,
    });
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

#[test]
fn streams_say_what_answers_say() {
    let server = Server::start(|_| {});
    let path = "/v1/chat/completions";
    let whole = server.post(path, &chat(json!({}))).json();
    let answer = server.post(path, &chat(json!({"stream": true, "stream_options": {"include_usage": true}})));
    assert_eq!(answer.header("x-accel-buffering"), Some("no"));
    let mut events = answer.events();
    assert_eq!(events.pop().unwrap(), "[DONE]");
    let chunks: Vec<Value> = events.iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    let (last, chunks) = chunks.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    for tokens in ["prompt_tokens", "completion_tokens", "total_tokens"] {
        assert_eq!(last["usage"][tokens], whole["usage"][tokens], "{tokens}");
    }
    // The second time the prompt is known, but for its last token.
    let cached = |usage: &Value| usage["prompt_tokens_details"]["cached_tokens"].clone();
    assert_eq!(cached(&whole["usage"]), 0);
    assert_eq!(cached(&last["usage"]), last["usage"]["prompt_tokens"].as_u64().unwrap() - 1);
    assert!(chunks.iter().all(|chunk| chunk["usage"].is_null() && chunk["object"] == "chat.completion.chunk"));
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    let text: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(whole["choices"][0]["message"]["content"], text);
    let reason = &chunks.last().unwrap()["choices"][0]["finish_reason"];
    assert_eq!(reason, &whole["choices"][0]["finish_reason"]);
    let usage = &whole["usage"];
    assert_eq!(usage["completion_tokens"], 12);
    let sum = usage["prompt_tokens"].as_u64().unwrap() + 12;
    assert_eq!(usage["total_tokens"], sum);
    server.end().unwrap();
}

#[test]
fn names_of_control_tokens_in_messages_are_text() {
    let model = story().unwrap();
    let tokenizer = model.tokenizer();
    let end = tokenizer.eos().unwrap();
    let name = String::from_utf8(tokenizer.token_name(end).unwrap().to_vec()).unwrap();
    let said = |text: String| model.chat_tokens(&[Message::new("user", text)], true).unwrap();
    let (plain, smuggled) = (said("Hi there".to_owned()), said(format!("Hi {name} there")));
    let count = |tokens: &[u32]| tokens.iter().filter(|&&token| tokenizer.is_end(token)).count();
    assert_eq!(count(&plain), count(&smuggled), "{smuggled:?}");
    assert!(smuggled.len() > plain.len() + 1);
    let text = String::from_utf8(tokenizer.decode(&smuggled)).unwrap();
    assert!(text.contains(&format!("Hi {name} there")), "{text}");
}

#[test]
fn text_to_tokens_and_back() {
    let server = Server::start(|_| {});
    let answer = server.post("/tokenize", &json!({"content": "The old king said: 日本"})).json();
    let tokens = answer["tokens"].as_array().unwrap();
    assert_eq!(answer["count"], tokens.len());
    let more = server.post("/tokenize", &json!({"content": "The old king said: 日本", "add_special": true})).json();
    assert!(more["tokens"].as_array().unwrap().ends_with(tokens));
    let back = server.post("/detokenize", &json!({"tokens": tokens})).json();
    assert_eq!(back, json!({"content": "The old king said: 日本"}));
    assert_eq!(server.post("/detokenize", &json!({"tokens": [4_000_000]})).refused(400)["param"], "tokens");
    server.end().unwrap();
}

#[test]
fn log_probabilities_end_where_the_text_ends() {
    let server = Server::start(|_| {});
    let ask = |fields: Value| {
        let mut body = json!({"prompt": "The old king", "max_tokens": 40, "temperature": 0, "logprobs": 1});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        server.post("/v1/completions", &body)
    };
    let free = ask(json!({})).json()["choices"][0].clone();
    let words: Vec<&str> = free["text"].as_str().unwrap().split_whitespace().collect();
    // Longer than a token: some tokens are known before it is.
    let stop = words[4..7].join(" ");
    let whole = ask(json!({"stop": stop})).json()["choices"][0].clone();
    let text = whole["text"].as_str().unwrap();
    assert!(free["text"].as_str().unwrap().starts_with(&format!("{text}{stop}")), "{whole}");
    let check = |text: &str, lists: &Value| {
        let lengths = ["tokens", "token_logprobs", "top_logprobs", "text_offset"]
            .map(|name| lists[name].as_array().unwrap().len());
        assert!(lengths.iter().all(|length| *length == lengths[0] && *length > 0), "{lengths:?}");
        let texts: Vec<&str> = lists["tokens"].as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect();
        assert!(texts.concat().starts_with(text), "{texts:?}");
        let mut end = 0;
        for (token, offset) in texts.iter().zip(lists["text_offset"].as_array().unwrap()) {
            assert_eq!(offset, end, "{texts:?}");
            assert!(end < text.len(), "{texts:?} in {text:?}");
            end += token.len();
        }
    };
    check(free["text"].as_str().unwrap(), &free["logprobs"]);
    check(text, &whole["logprobs"]);
    let (mut streamed, mut lists) = (String::new(), json!({}));
    let mut events = ask(json!({"stop": stop, "stream": true})).events();
    events.pop();
    for event in events {
        let event: Value = serde_json::from_str(&event).unwrap();
        streamed += event["choices"][0]["text"].as_str().unwrap();
        for (name, list) in event["choices"][0]["logprobs"].as_object().into_iter().flatten() {
            let all = lists.as_object_mut().unwrap().entry(name).or_insert_with(|| json!([]));
            all.as_array_mut().unwrap().extend(list.as_array().unwrap().clone());
        }
    }
    assert_eq!(streamed, text);
    assert_eq!(lists, whole["logprobs"]);
    server.end().unwrap();
}

#[test]
fn responses_repeat_what_was_sent() {
    let server = Server::start(|_| {});
    let format = json!({"type": "json_schema", "name": "number", "strict": false, "schema": {"type": "integer"}});
    let sent = json!({
        "metadata": {"run": "7"}, "parallel_tool_calls": false, "tool_choice": "none", "user": "somebody",
        "text": {"format": format},
    });
    let mut body = json!({"input": "How many?", "max_output_tokens": 8});
    let plain = server.post("/v1/responses", &body).json();
    let none = json!({
        "metadata": {}, "parallel_tool_calls": true, "tool_choice": "auto", "user": null,
        "text": {"format": {"type": "text"}},
    });
    body.as_object_mut().unwrap().extend(sent.as_object().unwrap().clone());
    let answer = server.post("/v1/responses", &body).json();
    for (answer, expected) in [(plain, none), (answer, sent)] {
        for (name, value) in expected.as_object().unwrap() {
            assert_eq!(answer[name], *value, "{name}");
        }
    }
    server.end().unwrap();
}

#[test]
fn the_page_comes_with_its_policy_and_is_kept_by_browsers() {
    let server = Server::start(|_| {});
    let page = server.get("/");
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert!(page.header("content-security-policy").unwrap().starts_with("default-src 'none'"));
    assert_eq!(server.get("/page/page.js").header("content-type"), Some("text/javascript; charset=utf-8"));
    let tag = page.header("etag").unwrap();
    let request = format!("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nIf-None-Match: {tag}\r\n\r\n");
    let same = server.raw(request.as_bytes());
    assert_eq!((same.status, same.body.len()), (304, 0));
    let head = server.raw(b"HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert_eq!((head.status, head.body.len()), (200, 0));
    server.end().unwrap();
}

#[test]
fn pages_of_other_origins_may_ask_where_they_are_named() {
    let origin = "https://example.org".to_owned();
    let server = Server::start(|options| options.origins = Origins::parse(&[origin]).unwrap());
    let preflight = |origin: &str| {
        server.raw(
            format!(
                "OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nOrigin: {origin}\r\n\
                 Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: authorization,content-type\r\n\r\n"
            )
            .as_bytes(),
        )
    };
    let allowed = preflight("https://example.org");
    assert_eq!(allowed.header("access-control-allow-origin"), Some("https://example.org"));
    assert!(allowed.header("access-control-allow-headers").unwrap().contains("authorization"));
    assert_eq!(preflight("https://other.org").header("access-control-allow-origin"), None);
    server.end().unwrap();
    let closed = Server::start(|_| {});
    let answer =
        closed.raw(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\nOrigin: https://a.org\r\n\r\n");
    assert_eq!(answer.header("access-control-allow-origin"), None);
    closed.end().unwrap();
}
