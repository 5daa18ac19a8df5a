//! A model that only turns texts into vectors.

use crate::client::{Answer, Server, post};
use crate::embedding_models::{Folder, KINDS, Written, cosine, references};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::path::Path;
use tritone_runtime::error::Error;
use tritone_runtime::model::{LoadOptions, Model, Source};
use tritone_server::engine::StartError;
use tritone_server::http::ServeError;

const EMBEDDINGS: &str = "/v1/embeddings";
const GO_ON: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

fn load(folder: &Path) -> Result<Model, Error> {
    let options = LoadOptions { threads: Some(2), ..LoadOptions::default() };
    Model::load(Source::File(folder.to_owned()), &options, &mut |_| {})
}

/// A server with the model of a kind and the most tokens that a text may have.
fn start(kind: &str, context: Option<usize>) -> (Written, Server) {
    let folder = Folder::new(kind).write();
    let path = folder.0.clone();
    (folder, Server::start_with(|options| options.engine.context = context, move || load(&path)))
}

fn ready(kind: &str, context: Option<usize>) -> (Written, Server) {
    let (folder, server) = start(kind, context);
    server.wait_until(|server| server.get("/health").status == 200);
    (folder, server)
}

fn vectors(answer: &Value) -> Vec<Vec<f32>> {
    let data = answer["data"].as_array().unwrap();
    data.iter().map(|one| serde_json::from_value(one["embedding"].clone()).unwrap()).collect()
}

#[test]
fn it_gives_the_vectors_and_says_nothing() {
    for kind in KINDS {
        let (_folder, server) = ready(kind, None);
        let references = references(kind);
        let texts: Vec<&str> = references.iter().map(|(text, ..)| text.as_str()).collect();
        let answer = server.post(EMBEDDINGS, &json!({"input": texts})).json();
        let vectors = vectors(&answer);
        assert_eq!(vectors.len(), texts.len());
        for (vector, (text, _, reference)) in vectors.iter().zip(&references) {
            let cosine = cosine(vector, reference);
            assert!(cosine > 0.995, "{kind}: {cosine} for {text}");
        }
        let n_tokens: usize = references.iter().map(|(_, ids, _)| ids.len()).sum();
        assert_eq!(answer["usage"], json!({"prompt_tokens": n_tokens, "total_tokens": n_tokens}));

        let prompts = [
            ("/v1/chat/completions", json!({"messages": [{"role": "user", "content": "Hello"}]})),
            ("/v1/completions", json!({"prompt": "Hello"})),
            ("/v1/responses", json!({"input": "Hello"})),
        ];
        for (path, body) in prompts {
            let refused = server.post(path, &body).refused(400);
            assert!(refused["message"].as_str().unwrap().contains(EMBEDDINGS), "{refused}");
        }
        assert_eq!(server.get("/v1/models").json()["data"][0]["context_length"], 512);
        assert_eq!(server.post("/tokenize", &json!({"content": "Hello"})).status, 200);
        assert_eq!((server.metric("tritone_queue_jobs"), server.metric("tritone_running_answers")), (0, 0));
        assert_eq!(server.metric("tritone_prompt_tokens_total"), n_tokens as u64);
        assert_eq!((server.metric("tritone_jobs_done_total"), server.metric("tritone_jobs_failed_total")), (1, 0));
        server.end().unwrap();
    }
}

#[test]
fn its_context_is_what_was_asked_for() {
    let (_folder, server) = ready("qwen3", Some(3));
    assert_eq!(server.get("/v1/models").json()["data"][0]["context_length"], 3);
    let refused = server.post(EMBEDDINGS, &json!({"input": [0, 1, 2, 3]})).refused(400);
    assert_eq!(refused["code"], "context_length_exceeded");
    assert_eq!(server.metric("tritone_jobs_failed_total"), 1);
    assert_eq!(server.post(EMBEDDINGS, &json!({"input": [0, 1, 2]})).status, 200);
    server.end().unwrap();
    let (_folder, server) = start("qwen3", Some(513));
    let (_, result) = server.ended();
    assert!(matches!(result, Err(ServeError::Start(StartError::Runtime(Error::InvalidOption { .. })))), "{result:?}");
}

#[test]
fn who_waits_for_vectors_is_counted_and_who_goes_is_too() {
    let (_folder, server) = ready("qwen3", None);
    let body = json!({"input": vec![vec![7; 512]; 400]}).to_string();
    let begin = || {
        let mut stream = server.connect();
        stream.write_all(&post(EMBEDDINGS, "", body.as_bytes())).unwrap();
        stream
    };
    let running = begin();
    server.wait_until(|server| server.metric("tritone_running_answers") == 1);
    let waiting = begin();
    server.wait_until(|server| server.metric("tritone_queue_jobs") == 1);
    drop((running, waiting));
    server.wait_until(|server| server.metric("tritone_jobs_cancelled_total") == 2);
    assert_eq!((server.metric("tritone_queue_jobs"), server.metric("tritone_running_answers")), (0, 0));
    server.end().unwrap();
}

#[test]
fn at_the_end_it_finishes_what_it_has() {
    let (_folder, server) = ready("qwen3", None);
    let text = vec![7; 512];
    let body = json!({"input": vec![text; 20]}).to_string();
    let request = post(EMBEDDINGS, "Expect: 100-continue\r\n", body.as_bytes());
    let (head, body) = request.split_at(request.len() - body.len());
    let mut stream = server.connect();
    stream.write_all(head).unwrap();
    // It waits for the body: the request has begun.
    let mut said = [0; GO_ON.len()];
    stream.read_exact(&mut said).unwrap();
    assert_eq!(&said, GO_ON);
    server.stop.send(()).unwrap();
    stream.write_all(body).unwrap();
    let answer = Answer::read(stream);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(vectors(&answer.json()).len(), 20);
    server.ended().1.unwrap();
}
