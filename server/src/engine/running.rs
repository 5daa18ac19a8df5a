//! A job under way: first its prompt goes through the model, then its answers do, a token at a time.

use super::answer::{Answer, Chosen, World};
use super::inbox::Request;
use super::job::{Event, Failure, FinishReason, Token, Usage};
use super::limits::Limits;
use super::masks::{Constrained, Looks, Masks};
use super::pages::{Held, Idle};
use super::prefixes::Prefixes;
use crate::metrics::Metrics;
use std::time::Instant;
use tritone_runtime::batch::{Feed, Logits, PAGE_TOKENS};
use tritone_runtime::error::Result as RuntimeResult;

/// A job under way.
pub(super) struct Running {
    id: u64,
    pub(super) request: Request,
    usage: Usage,
    phase: Phase,
    /// Where its answers hand over their constraints, if they have any.
    looks: Option<Looks>,
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
    /// The same while the constraint is away: it will be told then, and fed if something may come after it.
    untold: Option<Token>,
    /// When the last one was told.
    told: Option<Instant>,
}

impl Running {
    /// A job that begins with the tokens that `held` has of its prompt.
    pub(super) fn new(id: u64, request: Request, held: Held) -> Running {
        let usage = Usage {
            prompt_tokens: request.job.prompt.len(),
            cached_tokens: held.sequence.tokens().len(),
            completion_tokens: 0,
        };
        Running { id, request, usage, phase: Phase::Prompt { held, answers: Vec::new() }, looks: None }
    }

    /// Makes its answers, and asks the constraint what may come first.
    ///
    /// # Errors
    /// Settings that the sampler refuses.
    pub(super) fn start(&mut self, vocab: usize, masks: &Masks) -> Result<(), Failure> {
        let n = self.request.job.n;
        let constraint = self.request.job.constraint.take();
        let all = (0..n).map(|index| Answer::new(&self.request, index, constraint.is_some()));
        let all = all.collect::<Result<_, _>>()?;
        if let Phase::Prompt { answers, .. } = &mut self.phase {
            *answers = all;
        }
        if let Some(constraint) = constraint {
            let looks = masks.open(self.id);
            looks.begin(Constrained::new(constraint, vocab), n);
            self.looks = Some(looks);
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

    /// How many tokens of the prompt a step can take. The answers choose after the last one, and so it waits for what
    /// may come first.
    pub(super) fn prompt_ready(&self) -> usize {
        let waits = matches!(&self.phase, Phase::Prompt { answers, .. } if answers.iter().any(Answer::is_away));
        self.prompt_left().saturating_sub(usize::from(waits))
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
                let before = feeds.len();
                for Going { answer, held, next, .. } in going.iter_mut().filter(|going| going.untold.is_none()) {
                    let need = Some(answer.need(job, held.sequence.tokens(), *next));
                    feeds.push(Feed { sequence: &mut held.sequence, tokens: std::slice::from_ref(next), need });
                }
                feeds.len() - before
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
        let mut logits = logits.into_iter();
        let mut going = Vec::new();
        match std::mem::replace(&mut self.phase, Phase::Answers(Vec::new())) {
            Phase::Prompt { held, answers } => {
                let Some(logits) = logits.next() else { return Ok(()) };
                let logits = logits.map_err(internal)?;
                let n = held.sequence.tokens().len();
                // The last answer goes on with the prompt's own sequence.
                let forks: Vec<Held> = (1..answers.len()).map(|_| held.fork(n)).collect();
                for (answer, held) in answers.into_iter().zip(forks.into_iter().chain([held])) {
                    going.extend(self.choose(world, answer, held, &logits, None, prefixes)?);
                }
            }
            Phase::Answers(all) => {
                for mut one in all {
                    if one.untold.is_some() {
                        going.push(one);
                        continue;
                    }
                    let logits = logits.next().expect("a step gives all the logits that are wanted");
                    one.held.update();
                    let logits = logits.map_err(internal)?;
                    let Going { answer, held, told, .. } = one;
                    going.extend(self.choose(world, answer, held, &logits, told, prefixes)?);
                }
            }
        }
        self.phase = Phase::Answers(going);
        Ok(())
    }

    /// Lets an answer choose its next token, and tells who listens if it is known whether that is the last one. Returns
    /// the answer if it goes on.
    fn choose(
        &mut self,
        world: &World<'_>,
        mut answer: Answer,
        held: Held,
        logits: &Logits,
        told: Option<Instant>,
        prefixes: &mut Prefixes,
    ) -> Result<Option<Going>, Failure> {
        match answer.next(world, &self.request.job, logits, held.sequence.tokens())? {
            Chosen::Known(token, reason) => {
                let next = token.id;
                let told = Some(tell(&self.request, &mut self.usage, world.metrics, token, told));
                if let Some(reason) = reason {
                    self.request.say(Event::Finished { answer: answer.index(), reason });
                    prefixes.keep(held);
                    return Ok(None);
                }
                Ok(Some(Going { answer, held, next, untold: None, told }))
            }
            Chosen::Unsure(token, constrained) => {
                let next = token.id;
                if let Some(looks) = &self.looks {
                    looks.go_on(answer.index(), constrained, next);
                }
                Ok(Some(Going { answer, held, next, untold: Some(token), told }))
            }
        }
    }

    /// Takes constraints back, that of answer `first` and those of the ones after it. Answers after which nothing may come
    /// end.
    pub(super) fn take_back(
        &mut self,
        first: usize,
        constraints: Vec<Constrained>,
        metrics: &Metrics,
        prefixes: &mut Prefixes,
    ) {
        let Running { request, usage, phase, .. } = self;
        let ended = |answer: &Answer| {
            request.say(Event::Finished { answer: answer.index(), reason: FinishReason::Stop });
        };
        for (index, constrained) in (first..).zip(constraints) {
            match phase {
                Phase::Prompt { answers, .. } => {
                    let Some(i) = answers.iter().position(|answer| answer.index() == index) else { continue };
                    if !answers[i].take_back(constrained) {
                        ended(&answers.remove(i));
                    }
                }
                Phase::Answers(going) => {
                    let Some(i) = going.iter().position(|going| going.answer.index() == index) else { continue };
                    let Going { answer, untold, told, .. } = &mut going[i];
                    let goes_on = answer.take_back(constrained);
                    if let Some(mut token) = untold.take() {
                        if !goes_on {
                            answer.complete(&mut token);
                        }
                        *told = Some(tell(request, usage, metrics, token, *told));
                    }
                    if !goes_on {
                        let Going { answer, held, .. } = going.remove(i);
                        ended(&answer);
                        prefixes.keep(held);
                    }
                }
            }
        }
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

/// Tells who listens of a token, the last one having been told at `told`; returns when.
fn tell(request: &Request, usage: &mut Usage, metrics: &Metrics, token: Token, told: Option<Instant>) -> Instant {
    let now = Instant::now();
    if usage.completion_tokens == 0 {
        metrics.first_token(now - request.submitted);
    }
    metrics.token(told.map(|told| now - told));
    usage.completion_tokens += 1;
    request.say(Event::Token(token));
    now
}

fn internal(error: tritone_runtime::error::Error) -> Failure {
    Failure::Internal(error.to_string())
}
