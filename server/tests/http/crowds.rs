//! Many clients that keep the server waiting: others are served all the same.

use crate::client::{Answer, Server, post};
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const CHAT: &str = "/v1/chat/completions";
const TOKENIZE: &str = "/tokenize";

/// What the server waits for takes a minute in these tests, and what does not, far less, on a busy machine too.
const SOON: Duration = Duration::from_secs(25);
const MINUTE: Duration = Duration::from_secs(60);

#[track_caller]
fn is_served(server: &Server) {
    let began = Instant::now();
    assert_eq!(server.get("/health").status, 200);
    let body = json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1});
    let answer = server.post(CHAT, &body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
}

/// What comes until the connection ends, however it ends.
fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    // It may be reset.
    let _ = stream.read_to_end(&mut rest);
    rest
}

/// A request to cut a text of `n` bytes, most of which become a token each: the answer is more than sockets take in.
fn large(n: usize) -> Vec<u8> {
    post(TOKENIZE, "", json!({"content": "日".repeat(n / 3)}).to_string().as_bytes())
}

#[test]
fn silent_connections_leave_room() {
    let server = Server::start(|options| {
        options.limits.connections = 16;
        options.limits.first_head_time = MINUTE;
    });
    let mut silent: Vec<TcpStream> = (0..40).map(|_| server.connect()).collect();
    is_served(&server);
    // Those that have an answer coming keep their places, and others wait for one.
    let stream = json!({"messages": [{"role": "user", "content": "Hi"}], "stream": true, "max_tokens": 300,
        "logit_bias": {"0": -100, "1": -100, "2": -100}});
    let working = server.begin(CHAT, &stream);
    silent.extend((0..40).map(|_| server.connect()));
    is_served(&server);
    let mut bytes = vec![b'H'];
    { working }.read_to_end(&mut bytes).unwrap();
    assert_eq!(Answer::of(&bytes).events().last().unwrap(), "[DONE]");
    server.end().unwrap();
}

#[test]
fn the_first_head_has_less_time_than_an_idle_connection() {
    let server = Server::start(|options| options.limits.first_head_time = Duration::from_millis(300));
    let began = Instant::now();
    let mut kept = server.connect();
    kept.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert!(rest(&mut server.connect()).is_empty());
    assert!((Duration::from_millis(300)..SOON).contains(&began.elapsed()), "{:?}", began.elapsed());
    std::thread::sleep(Duration::from_millis(300));
    kept.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let answers = String::from_utf8(rest(&mut kept)).unwrap();
    assert_eq!(answers.matches("HTTP/1.1 200").count(), 2, "{answers}");
    server.end().unwrap();
}

#[test]
fn stalled_bodies_leave_room() {
    let server = Server::start(|options| {
        options.limits.body_bytes = 1 << 20;
        options.limits.all_bodies_bytes = 2 << 20;
        options.limits.piece_time = MINUTE;
    });
    let request = large(1_000_000);
    let mut stalled: Vec<TcpStream> = (0..8).map(|_| server.connect()).collect();
    for stream in &mut stalled {
        // The server may close it before it has all of this.
        let _ = stream.write_all(&request[..request.len() - 10]);
    }
    is_served(&server);
    // A large body takes the room of one that is stalled, in the end.
    let began = Instant::now();
    server.wait_until(|server| server.raw(&request).status == 200);
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    server.end().unwrap();
}

#[test]
fn bodies_must_get_on() {
    let server = Server::start(|options| options.limits.piece_time = Duration::from_millis(300));
    let began = Instant::now();
    let request = large(200_000);
    let mut stream = server.connect();
    stream.write_all(&request[..request.len() - 10]).unwrap();
    Answer::read(stream).refused(408);
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    server.end().unwrap();
}

#[test]
fn answers_that_nobody_takes_leave_room() {
    let request = large(2_000_000);
    let (mut whole, mut seconds) = (0, 0.0);
    for memory in [64 << 20, 0] {
        let server = Server::start(|options| {
            if memory == 0 {
                options.limits.all_answers_bytes = whole;
                options.limits.piece_time = MINUTE;
            }
        });
        if memory == 0 {
            // It is sent as fast as it can be.
            let mut unread = server.connect();
            unread.write_all(&request).unwrap();
            let mut first = [0];
            unread.read_exact(&mut first).unwrap();
            let began = Instant::now();
            server.wait_until(|server| server.raw(&request).status == 200);
            assert!(began.elapsed() < SOON + Duration::from_secs_f64(2.0 * seconds), "{:?}", began.elapsed());
            let taken = rest(&mut unread).len();
            assert!(taken < whole, "{taken} of {whole} bytes were sent to a client that took none");
        } else {
            let began = Instant::now();
            let answer = server.raw(&request);
            assert_eq!(answer.status, 200, "{}", answer.text());
            (whole, seconds) = (answer.body.len(), began.elapsed().as_secs_f64());
        }
        server.end().unwrap();
    }
}

#[test]
fn a_client_that_takes_too_little_is_left() {
    let server = Server::start(|options| options.limits.piece_time = Duration::from_millis(300));
    let request = large(2_000_000);
    let mut unread = server.connect();
    unread.write_all(&request).unwrap();
    let mut first = [0];
    unread.read_exact(&mut first).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let taken = rest(&mut unread).len();
    assert!(taken < server.raw(&request).body.len(), "{taken} bytes");
    server.end().unwrap();
}

#[test]
fn texts_that_are_much_too_long_are_refused_before_they_are_cut() {
    let server = Server::start(|_| {});
    let text = "a".repeat(7 << 20);
    let began = Instant::now();
    for (path, param, body) in [
        (CHAT, "messages", json!({"messages": [{"role": "user", "content": text}]})),
        ("/v1/responses", "input", json!({"input": text})),
        ("/v1/completions", "prompt", json!({"prompt": text})),
    ] {
        let error = server.post(path, &body).refused(400);
        assert_eq!((&error["param"], &error["code"]), (&json!(param), &json!("context_length_exceeded")));
        assert!(error["message"].as_str().unwrap().contains("more than"), "{error}");
    }
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    // One that is only somewhat too long is counted.
    let error = server.post("/v1/completions", &json!({"prompt": vec![7; 1500]})).refused(400);
    assert!(error["message"].as_str().unwrap().contains("1500 tokens"), "{error}");
    server.end().unwrap();
}

#[test]
fn texts_to_cut_and_to_put_together_have_a_limit() {
    let server = Server::start(|_| {});
    server.raw(&large(2_200_000)).refused(413);
    let longest = (0..100).map(|id| server.post("/detokenize", &json!({"tokens": [id]})).json());
    let longest = longest.enumerate().max_by_key(|(_, answer)| answer["content"].as_str().unwrap().len()).unwrap().0;
    assert_eq!(server.post("/detokenize", &json!({"tokens": vec![longest; 1000]})).status, 200);
    server.end().unwrap();
}
