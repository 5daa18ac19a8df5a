//! A server with the story model, and a client that says exactly what it is told.

use serde_json::Value;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tritone_runtime::error::Error;
use tritone_runtime::model::{LoadOptions, Model, Source};
use tritone_server::engine::EngineOptions;
use tritone_server::http::{Hosts, HttpLimits, Keys, Origins, ServeError, ServeOptions, serve_until};

/// Nothing here takes as long.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn story() -> Result<Model, Error> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/story.gguf");
    let options = LoadOptions { threads: Some(2), ..LoadOptions::default() };
    Model::load(Source::File(path), &options, &mut |_| {})
}

pub struct Server {
    pub address: SocketAddr,
    /// Says that the server is to end, or to end at once.
    pub stop: UnboundedSender<()>,
    thread: JoinHandle<Result<(), ServeError<Error>>>,
}

impl Server {
    /// Starts a server whose options `change` has changed.
    pub fn start(change: impl FnOnce(&mut ServeOptions)) -> Server {
        let server = Server::start_with(change, story);
        server.wait_until(|server| server.get("/health").status == 200);
        server
    }

    /// The same with another model, and without waiting for it.
    pub fn start_with(
        change: impl FnOnce(&mut ServeOptions),
        load: impl FnOnce() -> Result<Model, Error> + Send + 'static,
    ) -> Server {
        let mut options = ServeOptions {
            host: "127.0.0.1".to_owned(),
            port: 0,
            name: "story".to_owned(),
            engine: EngineOptions::default(),
            keys: Keys::default(),
            origins: Origins::None,
            hosts: Hosts::default(),
            timeout: PATIENCE,
            grace: PATIENCE,
            limits: HttpLimits::default(),
        };
        change(&mut options);
        let (stop, stopped) = unbounded_channel();
        let (told, address) = mpsc::channel();
        let thread =
            std::thread::spawn(move || serve_until(options, load, stopped, move |address| told.send(address).unwrap()));
        Server { address: address.recv_timeout(PATIENCE).unwrap(), stop, thread }
    }

    /// Waits for something to come true.
    pub fn wait_until(&self, mut holds: impl FnMut(&Server) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !holds(self) {
            assert!(Instant::now() < end, "it never came true");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Asks for the end and waits for it.
    pub fn end(self) -> Result<(), ServeError<Error>> {
        // It may have ended already.
        let _ = self.stop.send(());
        self.thread.join().unwrap()
    }

    /// Waits for the end without asking for it.
    pub fn ended(self) -> (SocketAddr, Result<(), ServeError<Error>>) {
        (self.address, self.thread.join().unwrap())
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends bytes as they are and reads until the connection is closed.
    pub fn raw(&self, request: &[u8]) -> Answer {
        let mut stream = self.connect();
        stream.write_all(request).unwrap();
        Answer::read(stream)
    }

    pub fn get(&self, path: &str) -> Answer {
        self.raw(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes())
    }

    /// Sends a body as JSON, with more lines in the head.
    pub fn post_with(&self, path: &str, head: &str, body: &[u8]) -> Answer {
        self.raw(&post(path, head, body))
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_with(path, "", body.to_string().as_bytes())
    }

    /// Begins a stream; returns once its first bytes are there.
    pub fn begin(&self, path: &str, body: &Value) -> TcpStream {
        let mut stream = self.connect();
        stream.write_all(&post(path, "", body.to_string().as_bytes())).unwrap();
        let mut first = [0];
        stream.read_exact(&mut first).unwrap();
        assert_eq!(first, [b'H']);
        stream
    }

    /// A number of /metrics.
    pub fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics").text();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned));
        line.unwrap_or_else(|| panic!("{name} in {text}")).parse().unwrap()
    }
}

/// A request with a body, which closes the connection after it.
pub fn post(path: &str, head: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n{head}\r\n"
    )
    .into_bytes();
    request.extend_from_slice(body);
    request
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Status line and headers, in small letters.
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    /// Reads all that comes.
    pub fn read(mut stream: TcpStream) -> Answer {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        Answer::of(&bytes)
    }

    pub fn of(bytes: &[u8]) -> Answer {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
        let head = std::str::from_utf8(&bytes[..end]).unwrap().to_lowercase();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut body = bytes[end + 4..].to_vec();
        if head.contains("transfer-encoding: chunked") {
            body = unchunked(&body);
        }
        Answer { status, head, body }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// Asserts that it is a refusal in the right shape; returns what is between the braces.
    pub fn refused(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        let error = self.json()["error"].clone();
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty() && !message.contains('\n')));
        assert!(error["type"].is_string() && error.get("param").is_some() && error.get("code").is_some(), "{error}");
        error
    }

    /// The data of all events.
    pub fn events(&self) -> Vec<String> {
        assert_eq!(self.status, 200, "{}", self.text());
        assert_eq!(self.header("content-type"), Some("text/event-stream; charset=utf-8"));
        let text = self.text();
        assert!(text.ends_with("\n\n"), "{text}");
        let lines =
            text.lines().filter(|line| !line.is_empty() && !line.starts_with(':') && !line.starts_with("event: "));
        lines.map(|line| line.strip_prefix("data: ").unwrap().to_owned()).collect()
    }
}

/// What is in chunks; as much as came whole.
fn unchunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = bytes.windows(2).position(|two| two == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).unwrap(), 16).unwrap();
        let Some(chunk) = bytes.get(end + 2..end + 2 + size) else { break };
        body.extend_from_slice(chunk);
        bytes = bytes.get(end + 4 + size..).unwrap_or_default();
    }
    body
}
