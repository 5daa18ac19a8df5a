//! A job under way: first its prompt goes through the model, then its answers do, a token at a time.

use super::answer::{Answer, World};
use super::inbox::Request;
use super::job::{Event, Failure, FinishReason, Usage};
use super::limits::Limits;
use super::pages::{Held, Idle};
use super::prefixes::Prefixes;
use std::time::Instant;
use tritone_runtime::batch::{Feed, Logits, PAGE_TOKENS};
use tritone_runtime::error::Result as RuntimeResult;

/// A job under way.
pub(super) struct Running {
    id: u64,
    pub(super) request: Request,
    usage: Usage,
    phase: Phase,
}

/// What goes through the model.
enum Phase {
    /// The prompt, for all answers.
    Prompt { held: Held, answers: Vec<Answer> },
    /// The answers that have not ended.
    Answers(Vec<Going>),
}

/// An answer and its sequence.
struct Going {
    answer: Answer,
    held: Held,
    /// Chosen, and not fed yet.
    next: u32,
    /// When it was chosen.
    at: Instant,
}

impl Running {
    /// A job that begins with the tokens that `held` has of its prompt.
    pub(super) fn new(id: u64, request: Request, held: Held) -> Running {
        let usage = Usage {
            prompt_tokens: request.job.prompt.len(),
            cached_tokens: held.sequence.tokens().len(),
            completion_tokens: 0,
        };
        Running { id, request, usage, phase: Phase::Prompt { held, answers: Vec::new() } }
    }

    /// Makes its answers. Those whose constraint allows nothing end at once.
    ///
    /// # Errors
    /// A constraint gives up.
    pub(super) fn start(&mut self, vocab: usize) -> Result<(), Failure> {
        for index in 0..self.request.job.n {
            let mut answer = Answer::new(&self.request, index, vocab)?;
            if !answer.begin()? {
                self.request.say(Event::Finished { answer: index, reason: FinishReason::Stop });
            } else if let Phase::Prompt { answers, .. } = &mut self.phase {
                answers.push(answer);
            }
        }
        Ok(())
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn usage(&self) -> Usage {
        self.usage
    }

    /// How many answers have not ended.
    pub(super) fn n_answers(&self) -> usize {
        match &self.phase {
            Phase::Prompt { answers, .. } => answers.len(),
            Phase::Answers(going) => going.len(),
        }
    }

    /// How many tokens of the prompt have not been fed.
    pub(super) fn prompt_left(&self) -> usize {
        match &self.phase {
            Phase::Prompt { held, .. } => self.request.job.prompt.len() - held.sequence.tokens().len(),
            Phase::Answers(_) => 0,
        }
    }

    /// Its sequences.
    pub(super) fn helds(&self) -> impl Iterator<Item = &Held> {
        let (prompt, answers) = match &self.phase {
            Phase::Prompt { held, .. } => (Some(held), &[][..]),
            Phase::Answers(going) => (None, &going[..]),
        };
        prompt.into_iter().chain(answers.iter().map(|going| &going.held))
    }

    /// How many more pages its sequences can come to hold.
    pub(super) fn pages_to_come(&self, limits: &Limits, idle: Idle) -> usize {
        match &self.phase {
            Phase::Prompt { held, .. } => limits.pages_of(&self.request.job) - held.pages() + held.copies(idle),
            Phase::Answers(going) => {
                let longest = limits.longest(&self.request.job).div_ceil(PAGE_TOKENS);
                going.iter().map(|going| longest - going.held.pages() + going.held.copies(idle)).sum()
            }
        }
    }

    /// Adds what a step is to do for it: its answers' tokens, or so many of its prompt. Returns how many logits it wants.
    pub(super) fn feed<'f>(&'f mut self, share: usize, feeds: &mut Vec<Feed<'f>>) -> usize {
        let job = &self.request.job;
        match &mut self.phase {
            Phase::Prompt { held, answers } => {
                let done = held.sequence.tokens().len();
                let end = job.prompt.len().min(done + share);
                if done == end {
                    return 0;
                }
                // All answers have the same settings, but for the seed.
                let last = answers.first().filter(|_| end == job.prompt.len());
                let need = last.map(|answer| answer.need(job, &job.prompt[..end - 1], job.prompt[end - 1]));
                let wanted = usize::from(need.is_some());
                feeds.push(Feed { sequence: &mut held.sequence, tokens: &job.prompt[done..end], need });
                wanted
            }
            Phase::Answers(going) => {
                let wanted = going.len();
                for Going { answer, held, next, .. } in going {
                    let need = Some(answer.need(job, held.sequence.tokens(), *next));
                    feeds.push(Feed { sequence: &mut held.sequence, tokens: std::slice::from_ref(next), need });
                }
                wanted
            }
        }
    }

    /// Takes the logits that it wanted. Sequences of answers that end are kept for later jobs.
    ///
    /// # Errors
    /// What fails the job; its sequences are of no use then.
    pub(super) fn take(
        &mut self,
        world: &World<'_>,
        logits: Vec<RuntimeResult<Logits>>,
        prefixes: &mut Prefixes,
    ) -> Result<(), Failure> {
        if let Phase::Prompt { held, .. } = &mut self.phase {
            held.update();
            if logits.is_empty() {
                return Ok(());
            }
        }
        match std::mem::replace(&mut self.phase, Phase::Answers(Vec::new())) {
            Phase::Prompt { held, answers } => {
                let Some(logits) = logits.into_iter().next() else { return Ok(()) };
                let logits = logits.map_err(internal)?;
                let n = held.sequence.tokens().len();
                // The last answer goes on with the prompt's own sequence.
                let forks: Vec<Held> = (1..answers.len()).map(|_| held.fork(n)).collect();
                for (answer, held) in answers.into_iter().zip(forks.into_iter().chain([held])) {
                    self.choose(world, answer, held, &logits, None, prefixes)?;
                }
            }
            Phase::Answers(going) => {
                for (Going { answer, mut held, at, .. }, logits) in going.into_iter().zip(logits) {
                    held.update();
                    let logits = logits.map_err(internal)?;
                    self.choose(world, answer, held, &logits, Some(at), prefixes)?;
                }
            }
        }
        Ok(())
    }

    /// Lets an answer choose its next token and tells who listens.
    fn choose(
        &mut self,
        world: &World<'_>,
        mut answer: Answer,
        held: Held,
        logits: &Logits,
        last: Option<Instant>,
        prefixes: &mut Prefixes,
    ) -> Result<(), Failure> {
        let (token, reason) = answer.next(world, &self.request.job, logits, held.sequence.tokens())?;
        let now = Instant::now();
        if self.usage.completion_tokens == 0 {
            world.metrics.first_token(now - self.request.submitted);
        }
        world.metrics.token(last.map(|last| now - last));
        self.usage.completion_tokens += 1;
        let next = token.id;
        self.request.say(Event::Token(token));
        match (reason, &mut self.phase) {
            (Some(reason), _) => {
                self.request.say(Event::Finished { answer: answer.index(), reason });
                prefixes.keep(held);
            }
            (None, Phase::Answers(going)) => going.push(Going { answer, held, next, at: now }),
            (None, Phase::Prompt { .. }) => unreachable!("the prompt has ended where an answer chooses"),
        }
        Ok(())
    }

    /// Ends the job; its sequences are kept for later ones.
    pub(super) fn retire(self, prefixes: &mut Prefixes) -> Request {
        match self.phase {
            Phase::Prompt { held, .. } => prefixes.keep(held),
            Phase::Answers(going) => going.into_iter().for_each(|going| prefixes.keep(going.held)),
        }
        self.request
    }
}

fn internal(error: tritone_runtime::error::Error) -> Failure {
    Failure::Internal(error.to_string())
}
