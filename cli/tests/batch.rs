//! `tritone batch` from outside: order, what is said of bad lines, and that nothing is lost or done twice.
#![cfg(feature = "embedded-model")]

mod process;

use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A folder of one test.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Place {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("batch-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Place(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    fn put(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        fs::write(self.0.join(name), bytes).unwrap();
        self.path(name)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn start(args: &[&str]) -> Child {
    process::start(&[&["batch"], args].concat())
}

fn with_input(args: &[&str], input: &[u8]) -> Output {
    let mut child = start(args);
    // A command that ends early leaves the rest unread.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

#[track_caller]
fn ends(args: &[&str], status: i32, says: &str) -> Output {
    let output = with_input(args, b"");
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{args:?}: {message}");
    assert!(message.contains(says) && !message.contains("panicked"), "{args:?}: {message}");
    output
}

fn records(text: impl AsRef<[u8]>) -> Vec<Value> {
    let text = std::str::from_utf8(text.as_ref()).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Records without what no two runs have in common: names, times, and how much of a prompt was known already.
fn lasting(path: &str) -> Vec<String> {
    let strip = |mut record: Value| {
        if let Some(body) = record.pointer_mut("/response/body").and_then(Value::as_object_mut) {
            for name in ["id", "created", "created_at"] {
                body.remove(name);
            }
        }
        for (part, name) in [
            ("/response/body/output/0", "id"),
            ("/response/body/usage/prompt_tokens_details", "cached_tokens"),
            ("/response/body/usage/input_tokens_details", "cached_tokens"),
        ] {
            if let Some(part) = record.pointer_mut(part).and_then(Value::as_object_mut) {
                part.remove(name);
            }
        }
        record.to_string()
    };
    records(fs::read(path).unwrap()).into_iter().map(strip).collect()
}

fn line(id: &str, url: &str, body: Value) -> String {
    json!({"custom_id": id, "method": "POST", "url": url, "body": body}).to_string() + "\n"
}

/// Requests of very different lengths, so that later ones end before earlier ones.
fn stories(n: usize, longest: usize) -> String {
    let story = |i: usize| {
        let tokens = 1 + (i * 7919 + longest - 1) % longest;
        let prompt = format!("Once there was a king who had {i} sons and");
        match i % 3 {
            0 => {
                let body = json!({"messages": [{"role": "user", "content": prompt}], "max_tokens": tokens, "seed": i});
                json!({"custom_id": format!("s{i}"), "body": body}).to_string() + "\n"
            }
            1 => line(
                &format!("s{i}"),
                "/v1/completions",
                json!({"prompt": prompt, "max_tokens": tokens, "temperature": 0}),
            ),
            _ => line(
                &format!("s{i}"),
                "/v1/responses",
                json!({"input": prompt, "max_output_tokens": tokens, "temperature": 0}),
            ),
        }
    };
    (0..n).map(story).collect()
}

#[test]
fn answers_come_in_the_order_of_the_requests() {
    let place = Place::new("order");
    let mut requests = stories(40, 60);
    requests += "\n  \r\n";
    requests += &line("vector", "/v1/embeddings", json!({"input": ["a king", "a fox"], "dimensions": 4}));
    let input = place.put("in.jsonl", requests.trim_end());
    let output = place.path("out.jsonl");
    let done = ends(&["-i", &input, "-o", &output, "--json"], 0, "");
    let summary: Value = serde_json::from_slice(&done.stdout).unwrap();
    for (name, count) in [("lines", 41), ("kept", 0), ("answered", 41), ("failed", 0)] {
        assert_eq!(summary[name], count, "{name}");
    }
    assert!(summary["prompt_tokens"].as_u64() > Some(400) && summary["completion_tokens"].as_u64() > Some(400));
    let written = records(fs::read(&output).unwrap());
    assert_eq!(written.len(), 41);
    for (i, record) in written.iter().enumerate() {
        assert_eq!(record["id"], format!("batch_req_{}", i + 1));
        assert_eq!(record["custom_id"], if i < 40 { format!("s{i}") } else { "vector".to_owned() });
        assert_eq!((&record["response"]["status_code"], &record["error"]), (&200.into(), &Value::Null), "{record}");
    }
    assert_eq!(written[0]["response"]["body"]["object"], "chat.completion");
    assert_eq!(written[1]["response"]["body"]["object"], "text_completion");
    assert_eq!(written[2]["response"]["body"]["object"], "response");
    assert_eq!(written[40]["response"]["body"]["data"][1]["embedding"].as_array().unwrap().len(), 4);
    assert!(!Path::new(&format!("{output}.part")).exists());

    // Who else is under way changes no answer.
    let alone = place.path("alone.jsonl");
    ends(&["-q", "-i", &input, "-o", &alone, "--parallel", "1", "-t", "1"], 0, "");
    assert_eq!(lasting(&alone), lasting(&output));
}

#[test]
fn bad_lines_become_records() {
    let place = Place::new("bad");
    let good = || json!({"prompt": "The king", "max_tokens": 2});
    let lines: [(&[u8], Option<&str>, &str); 13] = [
        (b"no json", None, "invalid_json_line"),
        (b"\xff\xfe{}", None, "invalid_json_line"),
        (br#"{"body": {}}"#, None, "missing_required_parameter"),
        (br#"{"custom_id": "x", "url": "/v1/completions", "body": {"prompt": "a", "max_tokens": 1}}"#, Some("x"), ""),
        (br#"{"custom_id": "x", "body": {}}"#, Some("x"), "duplicate_custom_id"),
        (br#"{"custom_id": "get", "method": "GET", "body": {}}"#, Some("get"), "invalid_method"),
        (br#"{"custom_id": "url", "url": "/v1/images", "body": {}}"#, Some("url"), "invalid_url"),
        (br#"{"custom_id": "none"}"#, Some("none"), "missing_required_parameter"),
        (br#"{"custom_id": "list", "body": []}"#, Some("list"), "400"),
        (br#"{"custom_id": "empty", "body": {}}"#, Some("empty"), "400 messages"),
        (
            br#"{"custom_id": "s", "body": {"messages": [{"role": "user", "content": "a"}], "stream": true}}"#,
            Some("s"),
            "400 stream",
        ),
        (
            br#"{"custom_id": "m", "url": "/v1/completions", "body": {"prompt": "a", "model": "gpt"}}"#,
            Some("m"),
            "404 model",
        ),
        (br#"{"custom_id": "e", "url": "/v1/embeddings", "body": {"input": []}}"#, Some("e"), "400 input"),
    ];
    let mut bytes: Vec<u8> = Vec::new();
    for (line, ..) in &lines {
        bytes.extend_from_slice(line);
        bytes.push(b'\n');
    }
    bytes.resize(bytes.len() + (9 << 20), b'x');
    bytes.push(b'\n');
    bytes.extend_from_slice(line("last", "/v1/completions", good()).as_bytes());
    let (input, output) = (place.put("in.jsonl", bytes), place.path("out.jsonl"));
    let done = ends(&["-q", "-i", &input, "-o", &output, "--json"], 3, "13 of 15 lines have no answer");
    let summary: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!((&summary["lines"], &summary["failed"]), (&15.into(), &13.into()));

    let written = records(fs::read(&output).unwrap());
    assert_eq!(written.len(), 15);
    for (record, (line, id, expected)) in written.iter().zip(&lines) {
        let line = String::from_utf8_lossy(line);
        assert_eq!(record["custom_id"].as_str(), *id, "{line}");
        let found = match record["error"]["code"].as_str() {
            Some(code) => {
                assert!(record["response"].is_null() && record["error"]["message"].is_string(), "{record}");
                code.to_owned()
            }
            None => {
                let (status, error) = (&record["response"]["status_code"], &record["response"]["body"]["error"]);
                let param = error["param"].as_str().map(|param| format!(" {param}")).unwrap_or_default();
                if *status == 200 { String::new() } else { format!("{status}{param}") }
            }
        };
        assert_eq!(found, *expected, "{line}: {record}");
    }
    assert_eq!(written[13]["error"]["code"], "line_too_long");
    assert_eq!(written[14]["response"]["status_code"], 200);
}

#[test]
fn pipes_on_both_sides() {
    let requests = stories(4, 8);
    let output = with_input(&["-i", "-", "-o", "-"], requests.as_bytes());
    assert_eq!(output.status.code(), Some(0));
    let names: Vec<Value> = records(&output.stdout).into_iter().map(|mut record| record["custom_id"].take()).collect();
    assert_eq!(names, ["s0", "s1", "s2", "s3"]);
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.starts_with("4 lines in ") && message.lines().count() == 1, "{message}");

    let nothing = with_input(&["-q", "-i", "-", "-o", "-"], b"");
    assert!(nothing.status.success() && nothing.stdout.is_empty() && nothing.stderr.is_empty());
    ends(&["-i", "-", "-o", "-", "--json"], 2, "leave --json out");

    // Answers do not wait until more is asked.
    let mut child = start(&["-q", "-i", "-", "-o", "-"]);
    let mut input = child.stdin.take().unwrap();
    let mut answers = BufReader::new(child.stdout.take().unwrap()).lines();
    for request in requests.lines() {
        writeln!(input, "{request}").unwrap();
        let answer: Value = serde_json::from_str(&answers.next().unwrap().unwrap()).unwrap();
        assert_eq!(answer["response"]["status_code"], 200);
    }
    drop(input);
    assert!(answers.next().is_none() && child.wait().unwrap().success());
}

#[test]
fn what_is_there_is_not_written_over() {
    let place = Place::new("there");
    let input = place.put("in.jsonl", stories(2, 3));
    let output = place.put("out.jsonl", "precious");
    ends(&["-i", &input, "-o", &output], 2, "is there already");
    assert_eq!(fs::read(&output).unwrap(), b"precious");
    ends(&["-i", &input, "-o", &output, "--force"], 0, "");
    assert_eq!(records(fs::read(&output).unwrap()).len(), 2);

    ends(&["-i", &input, "-o", &input, "--force"], 2, "is what is to be read");
    ends(&["-i", &input, "-o", &place.0.display().to_string()], 2, "not the name of a file");
    ends(&["-i", &place.path("none"), "-o", &place.path("new.jsonl")], 1, "cannot read");
    ends(&["-i", &input, "-o", &place.path("no/new.jsonl")], 1, "make the folder first");
    ends(&["-i", &input, "-o", &place.path("new.jsonl"), "-c", "0"], 2, "1 or more");
    ends(&["-i", &input, "-o", &place.path("new.jsonl"), "--parallel", "2000"], 2, "from 1 to 1024");
    assert_eq!(records(fs::read(&input).unwrap()).len(), 2);
    let left: Vec<_> = fs::read_dir(&place.0).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");

    let nothing = place.put("nothing.jsonl", "\n\n");
    ends(&["-i", &nothing, "-o", &place.path("new.jsonl")], 0, "0 lines");
    assert_eq!(fs::read(place.path("new.jsonl")).unwrap(), b"");
}

#[test]
fn a_file_in_the_making_belongs_to_its_requests() {
    let place = Place::new("foreign");
    let input = place.put("in.jsonl", stories(6, 4));
    let (output, part) = (place.path("out.jsonl"), place.path("out.jsonl.part"));
    ends(&["-i", &input, "-o", &output], 0, "");
    let whole = fs::read(&output).unwrap();
    fs::remove_file(&output).unwrap();
    let refused = |bytes: &[u8], input: &str, says: &str| {
        fs::write(&part, bytes).unwrap();
        ends(&["-i", input, "-o", &output], 1, says);
        assert_eq!(fs::read(&part).unwrap(), bytes, "{says}");
        assert!(!Path::new(&output).exists());
    };
    let other = place.put("other.jsonl", stories(6, 4).replacen("\"s1\"", "\"other\"", 1));
    refused(&whole, &other, "of its line 2 is \"s1\", that of request 2");
    // The same names, but something else is asked, or at another endpoint, or of another model.
    let changed = place.put("changed.jsonl", stories(6, 4).replacen("had 2 sons", "had 7 sons", 1));
    refused(&whole, &changed, "its line 3 answers another request than number 3");
    let moved = place.put("moved.jsonl", stories(6, 4).replacen("/v1/responses", "/v1/completions", 1));
    refused(&whole, &moved, "its line 3 answers another request");
    let broken = place.put("broken.jsonl", stories(6, 4).replacen("\"POST\"", "\"GET\"", 1));
    refused(&whole, &broken, "its line 2 answers another request");
    fs::write(&part, &whole).unwrap();
    ends(&["-i", &input, "-o", &output, "--alias", "other"], 1, "another model than \"other\"");
    let (head, rest) = std::str::from_utf8(&whole).unwrap().split_once("\"req_1_").unwrap();
    let older = format!("{head}\"req_1{}", &rest[rest.find('"').unwrap()..]);
    refused(older.as_bytes(), &input, "its line 1 is of an older version");
    let short = place.put("short.jsonl", stories(4, 4));
    refused(&whole, &short, "more lines than");
    refused(b"a diary\n", &input, "no file of answers in the making");
    refused(b"a diary", &input, "no file of answers in the making");
    let hurt = String::from_utf8(whole.clone()).unwrap().replacen("batch_req_3", "batch_req_4", 1);
    refused(hurt.as_bytes(), &input, "line 3 of");
}

#[test]
fn a_torn_file_is_completed() {
    let place = Place::new("torn");
    let requests = stories(6, 6) + "no json\n" + &line("last", "/v1/completions", json!({"prompt": "A"}));
    let input = place.put("in.jsonl", requests);
    let (whole, output, part) = (place.path("whole.jsonl"), place.path("out.jsonl"), place.path("out.jsonl.part"));
    ends(&["-q", "-i", &input, "-o", &whole], 3, "1 of 8 lines");
    // Greedy where nothing was said, so that both runs say the same.
    let (bytes, expected) = (fs::read(&whole).unwrap(), lasting(&whole));
    let ends_of_lines: Vec<usize> = (0..bytes.len()).filter(|i| bytes[*i] == b'\n').map(|i| i + 1).collect();
    let cuts = [0, 1, ends_of_lines[0] - 1, ends_of_lines[0], ends_of_lines[2] + 40, ends_of_lines[6], bytes.len()];
    for cut in cuts {
        fs::write(&part, &bytes[..cut]).unwrap();
        let done = ends(&["-i", &input, "-o", &output, "--json"], 3, "1 of 8 lines");
        let summary: Value = serde_json::from_slice(&done.stdout).unwrap();
        let kept = ends_of_lines.iter().filter(|end| **end <= cut).count();
        assert_eq!((&summary["kept"], &summary["failed"]), (&kept.into(), &1.into()), "{cut}");
        let kept_bytes = if kept == 0 { 0 } else { ends_of_lines[kept - 1] };
        assert_eq!(fs::read(&output).unwrap()[..kept_bytes], bytes[..kept_bytes]);
        // The last request has no seed.
        assert_eq!(lasting(&output)[..7], expected[..7]);
        assert!(!Path::new(&part).exists());
        fs::remove_file(&output).unwrap();
    }
}

/// Waits until a file has so many lines.
fn wait_for_lines(path: &str, n: usize) {
    let end = Instant::now() + Duration::from_secs(120);
    while fs::read(path).map_or(0, |bytes| bytes.iter().filter(|byte| **byte == b'\n').count()) < n {
        assert!(Instant::now() < end, "{path} does not grow");
        sleep(Duration::from_millis(5));
    }
}

#[cfg(unix)]
fn send(signal: &str, child: &Child) {
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
}

#[cfg(unix)]
#[test]
fn a_killed_run_is_taken_up_again() {
    let place = Place::new("killed");
    let input = place.put("in.jsonl", stories(60, 100));
    let (whole, output, part) = (place.path("whole.jsonl"), place.path("out.jsonl"), place.path("out.jsonl.part"));
    ends(&["-q", "-i", &input, "-o", &whole], 0, "");
    let args = ["-i", &input, "-o", &output, "--parallel", "4", "-t", "1", "--isa", "scalar"];
    for n in [2, 9] {
        let mut child = start(&args);
        wait_for_lines(&part, n);
        if n == 2 {
            ends(&args, 1, "is being written by another process");
        }
        send("-KILL", &child);
        child.wait().unwrap();
        assert!(!Path::new(&output).exists());
    }
    let kept = fs::read(&part).unwrap();
    let done = ends(&["-i", &input, "-o", &output], 0, "going on behind line ");
    assert!(String::from_utf8_lossy(&done.stderr).contains("lines in "));
    assert!(!Path::new(&part).exists());
    let whole_lines = kept.iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
    assert_eq!(fs::read(&output).unwrap()[..whole_lines], kept[..whole_lines]);
    assert_eq!(lasting(&output), lasting(&whole));
}

#[cfg(unix)]
#[test]
fn ctrl_c_keeps_what_is_done() {
    let place = Place::new("interrupted");
    let input = place.put("in.jsonl", stories(60, 100));
    let (output, part) = (place.path("out.jsonl"), place.path("out.jsonl.part"));
    let child = start(&["-i", &input, "-o", &output, "--parallel", "2", "-t", "1", "--isa", "scalar"]);
    wait_for_lines(&part, 3);
    send("-INT", &child);
    let stopped = child.wait_with_output().unwrap();
    assert_eq!(stopped.status.code(), Some(130));
    let message = String::from_utf8(stopped.stderr).unwrap();
    let lines = records(fs::read(&part).unwrap()).len();
    assert!(message.contains(&format!("out.jsonl.part has {lines} lines, and the same command goes on")), "{message}");
    let done = ends(&["-q", "-i", &input, "-o", &output, "--json"], 0, "");
    let summary: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!((&summary["kept"], &summary["lines"]), (&lines.into(), &60.into()));
    assert_eq!(lasting(&output).len(), 60);
}

/// Asks a server, as a client without any library would.
fn post(address: &str, url: &str, body: &str) -> Option<(u16, Value)> {
    let mut stream = TcpStream::connect(address).unwrap();
    let n = body.len();
    write!(
        stream,
        "POST {url} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {n}\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, serde_json::from_str(body).ok()?))
}

/// Ends a process, whatever happens.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_server_says_the_same() {
    let place = Place::new("server");
    let bodies = [
        ("/v1/chat/completions", json!({"messages": [{"role": "user", "content": "A fox"}], "seed": 3, "n": 2})),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": "A fox"}], "temperature": 0, "max_tokens": 30,
                   "response_format": {"type": "json_object"}, "logprobs": true, "top_logprobs": 2}),
        ),
        ("/v1/completions", json!({"prompt": ["The king", [5, 6, 7]], "seed": 1, "logprobs": 3, "echo": false})),
        ("/v1/responses", json!({"input": "A fox", "temperature": 0, "max_output_tokens": 9})),
        ("/v1/embeddings", json!({"input": ["a", "the king"], "encoding_format": "base64"})),
        ("/v1/completions", json!({"prompt": "a", "n": 9})),
        ("/v1/completions", json!({"prompt": "a", "logit_bias": {"99999999": 1}})),
        ("/v1/chat/completions", json!({"messages": [], "temprature": 1})),
        ("/v1/embeddings", json!({"input": "a", "dimensions": 100_000})),
    ];
    let lines = bodies.iter().enumerate().map(|(i, (url, body))| line(&i.to_string(), url, body.clone()));
    let (input, output) = (place.put("in.jsonl", lines.collect::<String>()), place.path("out.jsonl"));
    ends(&["-i", &input, "-o", &output], 3, "4 of 9 lines");

    let mut server = Command::new(env!("CARGO_BIN_EXE_tritone"));
    let server = server.args(["serve", "--port", "0"]).stdin(Stdio::null()).stderr(Stdio::piped());
    let mut server = Server(server.spawn().unwrap());
    let mut notes = BufReader::new(server.0.stderr.take().unwrap()).lines();
    let address = notes.find_map(|note| Some(note.unwrap().split_once("listening on http://")?.1.to_owned())).unwrap();
    // Read on, so that the server can.
    std::thread::spawn(move || notes.for_each(drop));
    let mut said = String::new();
    for (i, (url, body)) in bodies.iter().enumerate() {
        let (status, body) = loop {
            match post(&address, url, &body.to_string()) {
                Some((503, _)) => sleep(Duration::from_millis(20)),
                answer => break answer.unwrap(),
            }
        };
        let (id, request) = (format!("batch_req_{}", i + 1), format!("req_{}", i + 1));
        let response = json!({"status_code": status, "request_id": request, "body": body});
        said += &json!({"id": id, "custom_id": i.to_string(), "response": response, "error": null}).to_string();
        said.push('\n');
    }
    let expected = lasting(&place.put("said.jsonl", said));
    for (found, expected) in lasting(&output).into_iter().zip(expected) {
        assert_eq!(found, expected);
    }
}
