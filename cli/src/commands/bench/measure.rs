//! Tokens per second: prefill, decode, small batches, and the parts of a layer.

use super::spread::Spread;
use super::{BATCHES, BenchArgs, GENERATED, PROMPT};
use crate::failure::{Result, Stop};
use crate::load;
use indicatif::ProgressBar;
use std::time::Instant;
use tritone_runtime::model::Model;
use tritone_runtime::profile::Profile;
use tritone_runtime::scores::Need;
use tritone_runtime::session::Session;
use tritone_runtime::skipped::Density;

/// What prompts are made of, as often as needed: text, so that a trained model has the activations
/// that it has on text.
const TEXT: &str = "Once upon a time there was an old king who lived in a great castle by the sea. He had three sons, \
    and the youngest of them was called Hans. One day the king fell ill, and no doctor in the land could help him. \
    Then an old woman came to the gate and said that far away, beyond the mountains, there grew a tree with golden \
    apples, and whoever ate of them would be well again. So the eldest son took his horse and rode into the forest. ";

/// Steps of a batch in one repeat read about this share of the tokens that decoding does.
const BATCH_SHARE: usize = 4;

/// Tokens of a prompt, and steps after it, that nobody times.
const WARM_PROMPT: usize = 32;
const WARM_STEPS: usize = 4;

/// What is to be measured, once it is known to fit the model.
pub struct Plan {
    pub prompt: usize,
    pub generate: usize,
    pub depth: usize,
    pub repeats: usize,
    pub batches: Vec<usize>,
    pub chunk: usize,
    pub profile: bool,
    /// Tokens that the model was made for.
    pub context: usize,
    /// Enough for the prompt, the depth and all batches.
    pub tokens: Vec<u32>,
}

impl Plan {
    pub fn new(args: &BenchArgs, model: &Model) -> Result<Plan> {
        let context = model.config().context_length;
        let depth = args.depth;
        let fits = |option: &str, tokens: usize| match tokens <= context {
            true => Ok(tokens),
            false => Err(Stop::usage(
                format_args!("{option} is {tokens} tokens, and this model was made for {context}"),
                "give less, or another model",
            )),
        };
        let prompt = fits("-p", args.prompt.unwrap_or(PROMPT.min(context)))?;
        let room = context.saturating_sub(depth);
        let generate = args.generate.unwrap_or(GENERATED.min(room).max(1));
        fits("--depth and -n together", depth.saturating_add(generate))?;
        let batches = match args.batch.as_slice() {
            [] => BATCHES.into_iter().filter(|batch| *batch <= room).collect(),
            batches => batches.to_vec(),
        };
        for batch in &batches {
            fits("--depth and --batch together", depth.saturating_add(*batch))?;
        }
        Ok(Plan {
            prompt,
            generate,
            depth,
            repeats: args.repeats,
            batches,
            chunk: args.chunk,
            profile: args.profile,
            context,
            tokens: tokens(model, context),
        })
    }

    /// How many steps the bar counts.
    pub fn n_steps(&self) -> usize {
        1 + self.repeats * (2 + self.batches.len()) + if self.profile { 2 } else { 0 }
    }

    /// Tokens that stand before a decoded one on average.
    pub fn mean_context(&self) -> usize {
        self.depth + self.generate / 2
    }

    /// Steps of a batch in one repeat.
    fn batch_steps(&self, batch: usize) -> usize {
        let fitting = (self.context - self.depth) / batch;
        (self.generate / BATCH_SHARE / batch).max(2).min(fitting)
    }
}

/// `n` tokens of text.
fn tokens(model: &Model, n: usize) -> Vec<u32> {
    let tokenizer = model.tokenizer();
    let text = tokenizer.encode(TEXT, load::special(false), false);
    // A vocabulary may know no letter of it.
    let text = if text.is_empty() { vec![0] } else { text };
    let begin = tokenizer.bos().filter(|_| tokenizer.adds_bos());
    begin.into_iter().chain(text.into_iter().cycle()).take(n).collect()
}

/// The token with the largest logit.
pub fn likeliest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (token, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = token;
        }
    }
    best as u32
}

/// The likeliest token after `token`.
pub fn next(session: &mut Session, token: u32) -> Result<u32> {
    Ok(session.decode_for(token, &Need::top(1))?.best().unwrap_or_default())
}

/// What was measured at one number of threads.
pub struct Speeds {
    /// Tokens per second.
    pub prefill: Spread,
    /// Tokens per second.
    pub decode: Spread,
    /// What decoding needed of up and down.
    pub density: Density,
    pub batches: Vec<Batch>,
    pub profiles: Option<Profiles>,
}

/// Steps that read several tokens at once.
pub struct Batch {
    pub tokens: usize,
    pub tokens_per_second: Spread,
}

/// The parts of a layer, and how long the runs took in all.
pub struct Profiles {
    pub prefill: Profiled,
    pub decode: Profiled,
}

/// One run, in seconds for a token.
pub struct Profiled {
    pub profile: Profile,
    pub tokens: usize,
    /// Seconds of the run.
    pub seconds: f64,
}

/// Measures everything in the plan.
pub fn measure(model: &Model, plan: &Plan, bar: &ProgressBar) -> Result<Speeds> {
    let mut session = model.session(None)?;
    // Weights are read once, threads and memory are there, and so is the copy of the head, as they are after a first answer.
    read_prompt(&mut session, plan, plan.prompt.min(WARM_PROMPT))?;
    session.truncate(0);
    for &token in plan.tokens.iter().take(WARM_STEPS.min(plan.context)) {
        next(&mut session, token)?;
    }
    bar.inc(1);

    let (mut prefills, mut decodes) = (Vec::new(), Vec::new());
    let mut batches = vec![Vec::new(); plan.batches.len()];
    let mut density = Density::default();
    // In turn, so that whatever else the machine does meets all of them alike.
    for _ in 0..plan.repeats {
        prefills.push(plan.prompt as f64 / prefill(&mut session, plan)?);
        bar.inc(1);
        start_at(&mut session, plan)?;
        session.restart_skipped();
        decodes.push(plan.generate as f64 / decode(&mut session, plan)?);
        density = session.skipped().density();
        bar.inc(1);
        for (&batch, speeds) in plan.batches.iter().zip(&mut batches) {
            session.truncate(plan.depth);
            let tokens = batch * plan.batch_steps(batch);
            speeds.push(tokens as f64 / read_batches(&mut session, plan, batch)?);
            bar.inc(1);
        }
    }
    let profiles = if plan.profile {
        session.start_profile();
        let seconds = prefill(&mut session, plan)?;
        let of_prefill = session.take_profile().map(|profile| Profiled { profile, tokens: plan.prompt, seconds });
        bar.inc(1);
        start_at(&mut session, plan)?;
        session.start_profile();
        let seconds = decode(&mut session, plan)?;
        let of_decode = session.take_profile().map(|profile| Profiled { profile, tokens: plan.generate, seconds });
        bar.inc(1);
        of_prefill.zip(of_decode).map(|(prefill, decode)| Profiles { prefill, decode })
    } else {
        None
    };
    let batches = plan.batches.iter().zip(batches);
    Ok(Speeds {
        prefill: Spread::of(prefills),
        decode: Spread::of(decodes),
        density,
        batches: batches.map(|(&tokens, speeds)| Batch { tokens, tokens_per_second: Spread::of(speeds) }).collect(),
        profiles,
    })
}

/// Seconds for the prompt.
fn prefill(session: &mut Session, plan: &Plan) -> Result<f64> {
    session.truncate(0);
    let began = Instant::now();
    read_prompt(session, plan, plan.prompt)?;
    Ok(seconds_since(began))
}

/// Reads so many tokens, and finds the likeliest after them, as decoding does.
fn read_prompt(session: &mut Session, plan: &Plan, n: usize) -> Result<()> {
    session.prefill_for(&plan.tokens[..n], plan.chunk, &Need::top(1))?;
    Ok(())
}

/// Brings the context to where decoding begins.
fn start_at(session: &mut Session, plan: &Plan) -> Result<()> {
    session.truncate(0);
    if plan.depth > 0 {
        read_prompt(session, plan, plan.depth)?;
    }
    Ok(())
}

/// Seconds for all tokens to be decoded.
fn decode(session: &mut Session, plan: &Plan) -> Result<f64> {
    let mut token = plan.tokens[plan.depth.min(plan.tokens.len() - 1)];
    let began = Instant::now();
    for _ in 0..plan.generate {
        token = next(session, token)?;
    }
    Ok(seconds_since(began))
}

/// Seconds for the steps of a batch.
fn read_batches(session: &mut Session, plan: &Plan, batch: usize) -> Result<f64> {
    let tokens = &plan.tokens[plan.depth..];
    let began = Instant::now();
    for tokens in tokens.chunks_exact(batch).take(plan.batch_steps(batch)) {
        session.prefill_all(tokens, batch, &mut |_, logits| {
            std::hint::black_box(likeliest(logits));
        })?;
    }
    Ok(seconds_since(began))
}

/// Never 0, even where clocks are coarse.
fn seconds_since(began: Instant) -> f64 {
    began.elapsed().as_secs_f64().max(1e-9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equal_logits_is_the_likeliest() {
        assert_eq!(likeliest(&[0.0, 3.0, -1.0, 3.0]), 1);
        assert_eq!(likeliest(&[-5.0]), 0);
    }
}
