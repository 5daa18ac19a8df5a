//! Loading, queues, clients that go, and the end.

use crate::client::{Answer, Server, story};
use serde_json::{Value, json};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tritone_runtime::error::Error;
use tritone_server::http::ServeError;

const CHAT: &str = "/v1/chat/completions";

/// An answer of many tokens; the model's ends are banned.
fn long(stream: bool) -> Value {
    json!({
        "messages": [{"role": "user", "content": "Tell me a story."}],
        "max_tokens": 900, "stream": stream, "logit_bias": {"0": -100, "1": -100, "2": -100},
    })
}

#[test]
fn it_is_not_ready_before_the_model_is() {
    let (go, wait) = mpsc::channel();
    let server = Server::start_with(
        |_| {},
        move || {
            wait.recv().unwrap();
            story()
        },
    );
    let loading = server.get("/health");
    assert_eq!(loading.refused(503)["code"], "loading");
    assert!(loading.header("retry-after").is_some());
    server.post(CHAT, &long(false)).refused(503);
    go.send(()).unwrap();
    server.wait_until(|server| server.get("/health").status == 200);
    server.end().unwrap();
    // It can end while it loads, and a model that is none ends it.
    let (_keep, wait) = mpsc::channel::<()>();
    let server = Server::start_with(
        |_| {},
        move || {
            let _ = wait.recv();
            story()
        },
    );
    server.end().unwrap();
    let server =
        Server::start_with(|_| {}, || Err(Error::Tokenizer { what: "none".to_owned(), fix: "none".to_owned() }));
    let (_, result) = server.ended();
    assert!(matches!(result, Err(ServeError::Load(Error::Tokenizer { .. }))), "{result:?}");
}

#[test]
fn a_full_queue_says_when_to_come_again() {
    let server = Server::start(|options| {
        options.engine.parallel = 1;
        options.engine.max_queue = 1;
    });
    let running = server.begin(CHAT, &long(true));
    let waiting = server.begin(CHAT, &long(true));
    server.wait_until(|server| server.metric("tritone_queue_jobs") == 1);
    for stream in [true, false] {
        let full = server.post(CHAT, &long(stream));
        assert_eq!(full.refused(429)["code"], "rate_limit_exceeded");
        assert!(full.header("retry-after").unwrap().parse::<u32>().unwrap() >= 1);
    }
    assert_eq!(server.metric("tritone_jobs_refused_total"), 2);
    // More than there is ever room for need not come again.
    let refused = server.post("/v1/completions", &json!({"prompt": ["a", "b", "c"], "max_tokens": 2})).refused(400);
    assert_eq!(refused["param"], "prompt");
    drop((running, waiting));
    server.wait_until(|server| server.metric("tritone_jobs_cancelled_total") == 2);
    assert_eq!((server.metric("tritone_running_answers"), server.metric("tritone_queue_jobs")), (0, 0));
    server.end().unwrap();
}

#[test]
fn who_goes_is_not_waited_for() {
    let server = Server::start(|_| {});
    let streaming = server.begin(CHAT, &long(true));
    let mut plain = server.connect();
    std::io::Write::write_all(&mut plain, &crate::client::post(CHAT, "", long(false).to_string().as_bytes())).unwrap();
    server.wait_until(|server| server.metric("tritone_running_answers") == 2);
    drop((streaming, plain));
    server.wait_until(|server| server.metric("tritone_running_answers") == 0);
    assert_eq!(server.metric("tritone_jobs_cancelled_total"), 2);
    server.end().unwrap();
}

#[test]
fn an_answer_has_its_time() {
    let server = Server::start(|options| options.timeout = Duration::from_millis(100));
    assert_eq!(server.post(CHAT, &long(false)).refused(504)["code"], "timeout");
    let events = server.post(CHAT, &long(true)).events();
    let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "timeout");
    server.end().unwrap();
}

#[test]
fn streams_that_are_silent_say_that_they_live() {
    let server = Server::start(|options| {
        options.engine.parallel = 1;
        options.limits.ping_time = Duration::from_millis(20);
    });
    let running = server.begin(CHAT, &long(true));
    let mut body = long(true);
    body["max_tokens"] = json!(2);
    let waiting = server.begin(CHAT, &body);
    std::thread::sleep(Duration::from_millis(200));
    drop(running);
    let mut bytes = vec![b'H'];
    std::io::Read::read_to_end(&mut { waiting }, &mut bytes).unwrap();
    let answer = Answer::of(&bytes);
    assert!(answer.text().contains(": still here"), "{}", answer.text());
    assert_eq!(answer.events().last().unwrap(), "[DONE]");
    server.end().unwrap();
}

#[test]
fn at_the_end_answers_are_finished() {
    let server = Server::start(|_| {});
    let mut body = long(true);
    body["max_tokens"] = json!(200);
    let stream = server.begin(CHAT, &body);
    server.stop.send(()).unwrap();
    let mut bytes = vec![b'H'];
    std::io::Read::read_to_end(&mut { stream }, &mut bytes).unwrap();
    assert_eq!(Answer::of(&bytes).events().last().unwrap(), "[DONE]");
    let (address, result) = server.ended();
    result.unwrap();
    assert!(std::net::TcpStream::connect(address).is_err());
    // Asked twice it does not wait.
    let server = Server::start(|_| {});
    let stream = server.begin(CHAT, &long(true));
    let began = Instant::now();
    server.stop.send(()).unwrap();
    server.stop.send(()).unwrap();
    let mut bytes = vec![b'H'];
    std::io::Read::read_to_end(&mut { stream }, &mut bytes).unwrap();
    let events = Answer::of(&bytes).events();
    assert!(events.last().unwrap().contains("shutting down"), "{events:?}");
    server.ended().1.unwrap();
    assert!(began.elapsed() < Duration::from_secs(10));
}

/// Many texts of as many tokens as the model takes.
fn many_texts() -> Vec<u8> {
    let body = json!({"input": vec![vec![7; 500]; 8]});
    crate::client::post("/v1/embeddings", "", body.to_string().as_bytes())
}

#[test]
fn vectors_have_the_same_grace_as_answers() {
    for (signals, status) in [(1, 200), (2, 503)] {
        let server = Server::start(|options| {
            options.limits.last_writes = Duration::from_millis(if signals == 1 { 300 } else { 30_000 });
        });
        let mut stream = server.connect();
        std::io::Write::write_all(&mut stream, &many_texts()).unwrap();
        server.wait_until(|server| server.metric("tritone_running_answers") == 1);
        for _ in 0..signals {
            server.stop.send(()).unwrap();
        }
        let answer = Answer::read(stream);
        assert_eq!(answer.status, status, "{}", answer.text());
        server.ended().1.unwrap();
    }
}
