//! New processes: the time to their first token, and the memory they take.
//!
//! The command starts itself with `--cold`. The child writes one JSON line when it has its first
//! token and another one after it has read the prompt and decoded a little.

use super::measure::{self, Plan};
use super::spread::Spread;
use super::{BenchArgs, value_name};
use crate::failure::{Result, Stop};
use crate::interrupt::{LOOK, Watch};
use crate::load;
use crate::output::emit;
use indicatif::ProgressBar;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Instant;

/// More new processes than these tell nothing new.
const MAX_STARTS: usize = 5;

/// Tokens that the child decodes after its prompt.
const DECODED: usize = 16;

/// The prompt before the first token.
const PROMPT: &str = "Once upon a time";

/// A line or an error message of a child is never longer.
const MAX_LINE: u64 = 1 << 16;

/// What new processes took.
pub struct Cold {
    /// From the start of the process to the first token.
    pub first_token_seconds: Spread,
    /// Of these, opening the model.
    pub load_seconds: Spread,
    /// Most memory that was resident; nothing where the system does not tell.
    pub peak_memory: Option<u64>,
    /// Tokens in the context at that peak.
    pub context: usize,
}

/// How many processes are started.
pub fn starts(repeats: usize) -> usize {
    repeats.min(MAX_STARTS)
}

/// Starts new processes, one after the other.
pub fn measure(
    args: &BenchArgs,
    path: Option<&Path>,
    threads: usize,
    plan: &Plan,
    watch: &Watch,
    bar: &ProgressBar,
) -> Result<Cold> {
    let (mut first_tokens, mut loads) = (Vec::new(), Vec::new());
    let mut peak_memory = None;
    for start in 0..starts(args.repeats) {
        let mut process = Process::start(args, path, threads, plan)?;
        let (at, first) = process.line(watch)?;
        first_tokens.push((at - process.began).as_secs_f64());
        loads.push(number(&first, "load_seconds")?);
        if start == 0 {
            let (_, last) = process.line(watch)?;
            peak_memory = last["peak_memory_bytes"].as_u64();
        }
        bar.inc(1);
    }
    Ok(Cold {
        first_token_seconds: Spread::of(first_tokens),
        load_seconds: Spread::of(loads),
        peak_memory,
        context: context(plan),
    })
}

fn number(line: &Value, key: &str) -> Result<f64> {
    line[key].as_f64().ok_or_else(|| Stop::runtime(format_args!("a new process did not say its {key}")))
}

/// A child and the lines it writes. It is ended when this is dropped.
struct Process {
    child: Child,
    began: Instant,
    lines: mpsc::Receiver<(Instant, String)>,
}

impl Process {
    fn start(args: &BenchArgs, path: Option<&Path>, threads: usize, plan: &Plan) -> Result<Process> {
        let failed = |error| Stop::runtime(format_args!("cannot start a new process of this command: {error}"));
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command.args(["bench", "--cold", "--quiet", "-t", &threads.to_string()]);
        command.args(["-p", &plan.prompt.to_string(), "-n", &plan.generate.to_string()]);
        command.args(["--chunk", &args.chunk.to_string()]);
        if args.full_head {
            command.arg("--full-head");
        }
        if args.in_place {
            command.arg("--in-place");
        }
        command.args(["--layout", &value_name(args.layout), "--cache-type", &value_name(args.cache_type)]);
        if let Some(path) = path {
            command.arg("--model").arg(path);
        }
        if let Some(level) = args.isa {
            command.args(["--isa", level.name()]);
        }
        if let Some(kernel) = &args.kernel {
            command.args(["--kernel", kernel]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let began = Instant::now();
        let mut child = command.spawn().map_err(failed)?;
        let (sender, lines) = mpsc::channel();
        if let Some(out) = child.stdout.take() {
            thread::spawn(move || {
                let mut out = BufReader::new(out);
                loop {
                    let mut line = String::new();
                    match (&mut out).take(MAX_LINE).read_line(&mut line) {
                        // Nobody listens after an error or Ctrl-C.
                        Ok(1..) if sender.send((Instant::now(), line)).is_ok() => {}
                        _ => break,
                    }
                }
            });
        }
        Ok(Process { child, began, lines })
    }

    /// The next line, and when it came.
    fn line(&mut self, watch: &Watch) -> Result<(Instant, Value)> {
        loop {
            match self.lines.recv_timeout(LOOK) {
                Ok((at, line)) => {
                    let line = serde_json::from_str(&line)
                        .map_err(|error| Stop::runtime(format_args!("a new process wrote no JSON: {error}")))?;
                    return Ok((at, line));
                }
                Err(RecvTimeoutError::Timeout) if watch.pressed() => return Err(Stop::Interrupted),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) if watch.pressed() => return Err(Stop::Interrupted),
                Err(RecvTimeoutError::Disconnected) => return Err(self.died()),
            }
        }
    }

    fn died(&mut self) -> Stop {
        let mut said = String::new();
        if let Some(err) = self.child.stderr.take() {
            // What can't be read can't be shown.
            let _ = err.take(MAX_LINE).read_to_string(&mut said);
        }
        let said = said.trim().trim_start_matches("error: ");
        Stop::runtime(format_args!("a new process of this command failed: {said}"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Tokens in the context of a child when it ends.
pub fn context(plan: &Plan) -> usize {
    plan.prompt + decoded(plan)
}

/// Decoded tokens that fit after the prompt.
fn decoded(plan: &Plan) -> usize {
    plan.generate.min(DECODED).min(plan.context - plan.prompt)
}

/// The new process.
pub fn child(args: &BenchArgs) -> Result<()> {
    let threads = args.threads.first().copied().unwrap_or(1);
    let model = load::model(&args.model_args(args.model.as_deref(), threads))?;
    let plan = Plan::new(args, &model)?;
    let mut session = model.session(None)?;
    let tokenizer = model.tokenizer();
    let ids = tokenizer.encode(PROMPT, load::special(false), tokenizer.adds_bos());
    let ids = if ids.is_empty() { vec![0] } else { ids };
    let token = measure::likeliest(session.prefill(&ids, args.chunk)?);
    emit(format_args!("{}\n", json!({"token": token, "load_seconds": model.load_seconds()})))?;

    session.truncate(0);
    session.prefill(&plan.tokens[..plan.prompt], args.chunk)?;
    let mut token = measure::likeliest(session.logits());
    for _ in 0..decoded(&plan) {
        token = measure::next(&mut session, token)?;
    }
    emit(format_args!("{}\n", json!({"peak_memory_bytes": peak_memory()})))
}

/// The most memory that this process ever had resident, from `/proc`.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    peak_in(&status)
}

/// `VmHWM:    1234 kB`, see proc_pid_status(5).
fn peak_in(status: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kilobytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{CachePrecision, Layout};

    #[test]
    fn names_of_options_are_those_of_the_command_line() {
        assert_eq!(value_name(Layout::T5), "t5");
        assert_eq!(value_name(CachePrecision::F32), "f32");
    }

    #[test]
    fn the_peak_is_read_in_bytes() {
        assert_eq!(peak_in("Name:\tx\nVmPeak:\t 9 kB\nVmHWM:\t  1234 kB\n"), Some(1234 * 1024));
        assert_eq!(peak_in("VmHWM:\t18446744073709551615 kB\n"), None);
        assert_eq!(peak_in("Name:\tx\n"), None);
    }
}
