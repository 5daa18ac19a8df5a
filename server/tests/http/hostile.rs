//! What clients must not send, and must not do: the right status for each, and the server lives.

use crate::client::{Answer, Server, post};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};
use tritone_server::http::{Hosts, Keys};

const CHAT: &str = "/v1/chat/completions";
const KEY: &str = "Authorization: Bearer right-key\r\n";

fn chat(fields: &str) -> Vec<u8> {
    format!("{{\"messages\": [{{\"role\": \"user\", \"content\": \"Hi\"}}], {fields}}}").into_bytes()
}

#[test]
fn bodies_that_are_wrong() {
    let server = Server::start(|_| {});
    let send = |body: &[u8]| server.post_with(CHAT, "", body);
    let deep = "[".repeat(100_000);
    let schema = format!("{}1{}", "{\"not\":".repeat(5000), "}".repeat(5000));
    let stops = format!("\"stop\": [{}]", vec!["\"x\""; 1_000_000].join(","));
    for (body, param) in [
        (b"".to_vec(), Value::Null),
        (b"{".to_vec(), Value::Null),
        (b"[]".to_vec(), Value::Null),
        (b"{\"messages\": \"\xff\"}".to_vec(), Value::Null),
        (deep.clone().into_bytes(), Value::Null),
        (format!("{{\"messages\": {deep}").into_bytes(), Value::Null),
        (format!("{{\"messages\": {deep}{}}}", "]".repeat(100_000)).into_bytes(), json!("messages")),
        (chat("\"temperature\": -0.5"), json!("temperature")),
        (chat("\"temperature\": NaN"), Value::Null),
        (chat("\"temperature\": 1e999"), json!("temperature")),
        (chat("\"max_tokens\": -1"), json!("max_tokens")),
        (chat("\"max_tokens\": 0"), json!("max_tokens")),
        (chat("\"max_completion_tokens\": 0"), json!("max_completion_tokens")),
        (chat("\"max_tokens\": 99999999999999999999"), json!("max_tokens")),
        (chat("\"top_k\": -1"), json!("top_k")),
        (chat("\"n\": 1000"), json!("n")),
        (chat("\"n\": 100"), json!("n")),
        (chat("\"seed\": 0.5"), json!("seed")),
        (chat("\"seed\": 1, \"seed\": 2"), Value::Null),
        (chat("\"logit_bias\": {\"4000000\": 1}"), json!("logit_bias")),
        (chat("\"suffix\": \"x\""), json!("suffix")),
        (chat("\"stop\": [\"\"]"), json!("stop")),
        (chat(&stops), json!("stop")),
        (
            chat(&format!(
                "\"response_format\": {{\"type\": \"json_schema\", \"json_schema\": {{\"schema\": {schema}}}}}"
            )),
            json!("response_format"),
        ),
    ] {
        let shown = String::from_utf8_lossy(&body[..body.len().min(120)]).into_owned();
        let error = send(&body).refused(400);
        assert_eq!(error["param"], param, "{shown}: {error}");
        assert_eq!(error["type"], "invalid_request_error");
    }
    let unknown = server.post(CHAT, &json!({"model": "gpt-17", "messages": [{"role": "user", "content": "Hi"}]}));
    assert_eq!(unknown.refused(404)["code"], "model_not_found");
    assert_eq!(server.get("/health").status, 200);
    server.end().unwrap();
}

#[test]
fn a_body_of_100_megabytes_is_refused() {
    let server = Server::start(|_| {});
    let body = vec![b' '; 100 << 20];
    server.post_with(CHAT, "", &body).refused(413);
    // Without saying how much comes.
    let mut stream = server.connect();
    let head =
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n";
    stream.write_all(format!("{head}Transfer-Encoding: chunked\r\n\r\n").as_bytes()).unwrap();
    for _ in 0..100 {
        stream.write_all(format!("{:x}\r\n", 1 << 20).as_bytes()).unwrap();
        stream.write_all(&body[..1 << 20]).unwrap();
        stream.write_all(b"\r\n").unwrap();
    }
    stream.write_all(b"0\r\n\r\n").unwrap();
    Answer::read(stream).refused(413);
    server.end().unwrap();
}

#[test]
fn requests_that_are_wrong() {
    let server = Server::start(|options| options.keys = Keys::parse("right-key\n").unwrap());
    let key = KEY;
    let body = chat("\"max_tokens\": 1");
    assert_eq!(server.post_with(CHAT, key, &body).status, 200);
    for wrong in
        ["", "Authorization: Bearer wrong-key\r\n", "Authorization: Bearer \r\n", "Authorization: Basic right-key\r\n"]
    {
        let answer = server.post_with(CHAT, wrong, &body);
        assert_eq!(answer.refused(401)["code"], "invalid_api_key");
        assert_eq!(answer.header("www-authenticate"), Some("bearer"));
    }
    for path in ["/v1/models", "/metrics"] {
        server.get(path).refused(401);
    }
    for path in ["/health", "/"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    for path in
        ["/../../etc/passwd", "/page/../../../etc/passwd", "/page/%2e%2e/%2e%2e/etc/passwd", "/page//etc/passwd", "/v2"]
    {
        server.get(path).refused(404);
    }
    let with_key = |request: &str| server.raw(format!("{request}Host: x\r\nConnection: close\r\n{key}\r\n").as_bytes());
    let answer = with_key("GET /v1/chat/completions HTTP/1.1\r\n");
    answer.refused(405);
    assert!(answer.header("allow").unwrap().contains("post"));
    let typed = with_key("POST /v1/chat/completions HTTP/1.1\r\nContent-Type: text/plain\r\nContent-Length: 0\r\n");
    typed.refused(415);
    for coding in ["gzip", "identity, gzip", "br"] {
        let packed = server.post_with(CHAT, &format!("{key}Content-Encoding: {coding}\r\n"), &body).refused(415);
        assert!(packed["message"].as_str().unwrap().contains("Content-Encoding"), "{packed}");
    }
    assert_eq!(server.post_with(CHAT, &format!("{key}Content-Encoding: Identity\r\n"), &body).status, 200);
    assert_eq!(server.raw(b"nonsense\r\n\r\n").status, 400);
    let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(200_000));
    assert_eq!(server.raw(long.as_bytes()).status, 431);
    server.end().unwrap();
}

#[test]
fn pages_cannot_make_their_name_ours() {
    let get = |server: &Server, host: &str| {
        server.raw(format!("GET /v1/models HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{KEY}\r\n").as_bytes())
    };
    let server = Server::start(|options| options.hosts = Hosts::parse(&["models.example".to_owned()]).unwrap());
    for host in ["localhost:8080", "127.0.0.1", "[::1]:1", "tritone", "models.example"] {
        assert_eq!(get(&server, host).status, 200, "{host}");
    }
    let error = get(&server, "evil.example:8080").refused(421);
    assert!(error["message"].as_str().unwrap().contains("--allow-host"), "{error}");
    server.end().unwrap();
    // With a key the page has nothing, and behind other addresses it has what anybody has.
    let server = Server::start(|options| options.keys = Keys::parse("right-key\n").unwrap());
    assert_eq!(get(&server, "evil.example").status, 200);
    server.end().unwrap();
    let server = Server::start(|options| options.host = "0.0.0.0".to_owned());
    assert_eq!(get(&server, "evil.example").status, 200);
    server.end().unwrap();
}

#[test]
fn the_slow_and_the_silent_are_left() {
    let server = Server::start(|options| {
        options.limits.head_time = Duration::from_millis(300);
        options.limits.body_time = Duration::from_millis(300);
    });
    let began = Instant::now();
    let mut silent = server.connect();
    let mut slow = server.connect();
    slow.write_all(b"GET /health HTTP/1.1\r\nX: ").unwrap();
    let mut half = server.connect();
    half.write_all(&post(CHAT, "", &[b' '; 100])[..150]).unwrap();
    // A body that never comes is answered, heads are not.
    Answer::read(half).refused(408);
    for stream in [&mut silent, &mut slow] {
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&rest));
    }
    assert!(began.elapsed() < Duration::from_secs(20));
    assert_eq!(server.get("/health").status, 200);
    server.end().unwrap();
}

#[test]
fn who_hangs_up_half_way_is_gone() {
    let server = Server::start(|_| {});
    let body = chat("\"max_tokens\": 900, \"logit_bias\": {\"0\": -100, \"1\": -100, \"2\": -100}");
    let mut stream = server.connect();
    stream.write_all(&post(CHAT, "", &body)).unwrap();
    server.wait_until(|server| server.metric("tritone_running_answers") == 1);
    stream.shutdown(Shutdown::Write).unwrap();
    server.wait_until(|server| server.metric("tritone_running_answers") == 0);
    assert_eq!(server.metric("tritone_jobs_cancelled_total"), 1);
    server.end().unwrap();
}
