//! `tritone batch`: a file of requests to a file of answers.
//!
//! A thread reads lines ahead; the engine has as many under way as it can use, and answers wait until their line's turn
//! has come, so that line i of the answers belongs to request i. A line is written whole or, where the process is
//! killed, cut off: such a rest is dropped by the next run, which goes on behind the last whole line.

mod answers;
mod progress;
mod requests;

use crate::args::{EngineArgs, ModelArgs, not_started};
use crate::failure::{INCOMPLETE, Result, Stop};
use crate::interrupt::{self, Watch};
use crate::load;
use crate::output::{emit, note};
use answers::Answers;
use clap::Args;
use progress::Progress;
use requests::{Line, Requests};
use serde_json::json;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tritone_runtime::model::Model;
use tritone_server::http::{Desk, ServeError};

/// What the command's help says after the options.
pub const HELP: &str = "The format is that of OpenAI's Batch API. A line of the input is a request:
  {\"custom_id\": \"a\", \"method\": \"POST\", \"url\": \"/v1/chat/completions\", \"body\": {...}}
url may also be /v1/completions, /v1/embeddings or /v1/responses; without method and url it is a
chat. Bodies are those that `tritone serve` takes, without `stream`. Line i of the output is the
answer to request i, whatever ended first, or says what is wrong with the request; empty lines of
the input do not count.

The output grows in OUT.part and is moved to OUT when it is complete. After a crash or Ctrl-C the
same command goes on behind the last line that is there, and asks nothing again; what is there must
have come of the same requests and a model of the same name. To begin anew, delete OUT.part.

Examples:
  tritone batch -m model.gguf -i requests.jsonl -o answers.jsonl
  tritone batch -m model.gguf -i requests.jsonl -o answers.jsonl --parallel 32 --json
  echo '{\"custom_id\": \"1\", \"url\": \"/v1/completions\", \"body\": {\"prompt\": \"The king\"}}' \\
    | tritone batch -i - -o -

The status is 3 if the output is complete, but has lines that are no answers.";

/// How long to wait for an answer before looking at Ctrl-C.
const TICK: Duration = Duration::from_millis(50);

/// Lines that are under way, for each answer that the engine gives at once: when one ends, the next is there.
const LINES_AHEAD: usize = 2;
/// Lines in memory, for each answer at once: so many may be complete while the first is not.
const LINES_HELD: usize = 32;
/// No line is begun while requests and answers in memory have so many bytes.
const MAX_HELD_BYTES: usize = 64 << 20;

/// Options of `batch`.
#[derive(Args)]
pub struct BatchArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    engine: EngineArgs,
    /// The requests, one a line; - for standard input
    #[arg(short, long, value_name = "FILE")]
    input: PathBuf,
    /// The answers; - for standard output, which leaves nothing to go on from after a crash
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Write over a file of answers that is complete
    #[arg(long)]
    force: bool,
    /// One JSON object that sums up
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &BatchArgs) -> Result<()> {
    interrupt::install()?;
    if args.json && Answers::is_stdout(&args.output) {
        return Err(Stop::usage(
            "the answers and the object that sums up cannot both go to standard output",
            "leave --json out, or give -o a file",
        ));
    }
    let mut requests = Requests::open(&args.input)?;
    let mut answers = Answers::open(&args.output, args.force)?;
    answers.refuse_own_input(&args.input)?;
    let mut counts = Counts::default();
    let model_name = args.engine.name(args.model.model.as_deref());
    let end = keep(&mut answers, &mut requests, &model_name, &mut counts)?;
    if counts.kept > 0 && !args.model.quiet {
        note(format_args!("going on behind line {} of {}", counts.kept, answers.name()));
    }

    let model = load::model(&args.model)?;
    let desk = Desk::open(model.clone(), model_name.clone(), args.engine.options(&args.model));
    let desk = desk.map_err(|error| match error {
        ServeError::Start(error) => not_started(error),
        other => Stop::runtime(other),
    })?;
    let progress = Progress::new(requests.size(), end, args.model.quiet);
    let began = Instant::now();
    let parallel = desk.parallel();
    let held = VecDeque::new();
    let mut work = Work { desk, model_name, requests, answers, counts, progress, end, parallel, held, held_bytes: 0 };
    let done = work.all();
    work.progress.finish();
    if matches!(done, Err(Stop::Interrupted)) && !args.model.quiet {
        note(work.answers.how_to_go_on(work.counts.lines));
    }
    done?;
    let seconds = began.elapsed().as_secs_f64();
    let Work { answers, counts, .. } = work;
    answers.finish()?;

    if args.json {
        emit(format_args!("{}\n", counts.json(args, seconds)))?;
    } else if !args.model.quiet {
        note(counts.summary(seconds, &model));
    }
    match counts.failed {
        0 => Ok(()),
        failed => Err(Stop::Error {
            message: format!("{failed} of {} lines have no answer; their records say why", counts.lines),
            hint: None,
            status: INCOMPLETE,
        }),
    }
}

/// Keeps the lines of an earlier run, as far as they belong to the requests. Returns where the requests end that have
/// been answered.
fn keep(answers: &mut Answers, requests: &mut Requests, model_name: &str, counts: &mut Counts) -> Result<u64> {
    let mut end = 0;
    while let Some(record) = answers.next_kept()? {
        let number = counts.lines + 1;
        let Some(line) = requests.wait()? else {
            return Err(answers.foreign(format_args!(
                "it has more lines than {} has requests, which are {}",
                requests.name(),
                counts.lines
            )));
        };
        if record.custom_id.as_deref() != line.custom_id() {
            let quoted = |id: Option<&str>| id.map_or_else(|| "none".to_owned(), |id| json!(id).to_string());
            return Err(answers.foreign(format_args!(
                "the `custom_id` of its line {number} is {}, that of request {number} in {} is {}",
                quoted(record.custom_id.as_deref()),
                requests.name(),
                quoted(line.custom_id()),
            )));
        }
        let same = match (&line.content, &record.reply) {
            (Ok(request), Some(reply)) => match &reply.digest {
                Some(digest) => *digest == requests::digest(request, model_name),
                None => {
                    return Err(answers.foreign(format_args!(
                        "its line {number} is of an older version, which did not note what had been asked"
                    )));
                }
            },
            (Err(_), None) => true,
            _ => false,
        };
        if !same {
            return Err(answers.foreign(format_args!(
                "its line {number} answers another request than number {number} in {}, or one to another model than {}",
                requests.name(),
                json!(model_name)
            )));
        }
        end = line.end;
        counts.kept += 1;
        counts.add(record.reply.is_some_and(|reply| reply.is_answer));
    }
    Ok(end)
}

/// What has been done.
#[derive(Default)]
struct Counts {
    /// Lines of the output, those of earlier runs included.
    lines: u64,
    /// Those of earlier runs.
    kept: u64,
    /// Lines that are no answers.
    failed: u64,
    /// Tokens of this run.
    prompt_tokens: u64,
    completion_tokens: u64,
}

impl Counts {
    fn add(&mut self, is_answer: bool) {
        self.lines += 1;
        self.failed += u64::from(!is_answer);
    }

    fn json(&self, args: &BatchArgs, seconds: f64) -> serde_json::Value {
        json!({
            "input": args.input.display().to_string(),
            "output": args.output.display().to_string(),
            "lines": self.lines,
            "kept": self.kept,
            "answered": self.lines - self.failed,
            "failed": self.failed,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "seconds": seconds,
        })
    }

    fn summary(&self, seconds: f64, model: &Model) -> String {
        let rate = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        let lines = self.lines - self.kept;
        format!(
            "{lines} lines in {seconds:.1} s, prompts {} tokens, generated {} tokens, {:.1} tokens/s; {}, {}, {} threads",
            self.prompt_tokens,
            self.completion_tokens,
            rate(self.completion_tokens),
            model.isa().level(),
            model.gemm_kernel(),
            model.threads(),
        )
    }
}

/// A line that has been read and not written.
struct Held {
    custom_id: String,
    /// What is asked, and of whom.
    digest: String,
    /// Where its request ends in the input.
    end: u64,
    /// Of the request, or of the record.
    bytes: usize,
    /// Nothing while the answer is under way.
    record: Option<(String, bool)>,
}

/// The lines on their way from one file to the other.
struct Work {
    desk: Desk,
    model_name: String,
    requests: Requests,
    answers: Answers,
    counts: Counts,
    progress: Progress,
    /// Where the requests end whose answers are written.
    end: u64,
    parallel: usize,
    /// In the order of the input; the first is the next to be written.
    held: VecDeque<Held>,
    held_bytes: usize,
}

impl Work {
    /// Answers all lines that are left.
    fn all(&mut self) -> Result<()> {
        let watch = Watch::start();
        let mut ended = false;
        while !ended || !self.held.is_empty() {
            if watch.pressed() {
                return Err(Stop::Interrupted);
            }
            let has_room = self.desk.under_way() < LINES_AHEAD * self.parallel
                && self.held.len() < LINES_HELD * self.parallel
                && self.held_bytes < MAX_HELD_BYTES;
            let patience = if self.desk.under_way() == 0 { TICK } else { Duration::ZERO };
            if !ended && has_room {
                match self.requests.next(patience)? {
                    requests::Next::Line(line) => self.begin(line),
                    requests::Next::End => ended = true,
                    requests::Next::NotYet => self.take_answer()?,
                }
            } else {
                self.take_answer()?;
            }
            self.write()?;
            self.progress.set(self.end, &self.counts);
        }
        Ok(())
    }

    /// Hands a line to the engine, or says what is wrong with it.
    fn begin(&mut self, line: Line) {
        let number = self.counts.lines + self.held.len() as u64 + 1;
        let held = match line.content {
            Ok(request) => {
                let bytes = request.body.len();
                let digest = requests::digest(&request, &self.model_name);
                self.desk.ask(number, request.endpoint, request.body);
                Held { custom_id: request.custom_id, digest, end: line.end, bytes, record: None }
            }
            Err(bad) => {
                let record = bad.record(number);
                let (bytes, record) = (record.len(), Some((record, false)));
                Held { custom_id: String::new(), digest: String::new(), end: line.end, bytes, record }
            }
        };
        self.held_bytes += held.bytes;
        self.held.push_back(held);
    }

    /// Waits a moment for an answer.
    fn take_answer(&mut self) -> Result<()> {
        let Some((number, reply)) = self.desk.next(TICK) else { return Ok(()) };
        if reply.status >= 500 && !self.desk.healthy() {
            return Err(Stop::runtime(format_args!(
                "the engine has ended after a failure; {}",
                self.answers.how_to_go_on(self.counts.lines)
            )));
        }
        let index = usize::try_from(number - self.counts.lines - 1).ok();
        let Some(held) = index.and_then(|index| self.held.get_mut(index)) else { return Ok(()) };
        let record = reply.record(number, &held.custom_id, &held.digest);
        self.held_bytes = self.held_bytes - held.bytes + record.len();
        held.bytes = record.len();
        held.record = Some((record, reply.is_answer()));
        self.counts.prompt_tokens += reply.prompt_tokens;
        self.counts.completion_tokens += reply.completion_tokens;
        Ok(())
    }

    /// Writes what is complete up to the first that is not.
    fn write(&mut self) -> Result<()> {
        while let Some((record, is_answer)) = self.held.front_mut().and_then(|held| held.record.take()) {
            self.answers.line(record)?;
            self.counts.add(is_answer);
            if let Some(held) = self.held.pop_front() {
                self.held_bytes -= held.bytes;
                self.end = held.end;
            }
        }
        Ok(())
    }
}
