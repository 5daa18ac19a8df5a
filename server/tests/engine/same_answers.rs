//! Who else is served changes no answer.

use crate::jobs::{Outcome, done, greedy, listen, start, story, tokens};
use tritone_runtime::generate::{Finish, GenerateOptions, Generation};
use tritone_runtime::model::Model;
use tritone_runtime::sampler::SamplerConfig;
use tritone_server::engine::EngineOptions;
use tritone_server::engine::job::{Constraint, FinishReason, Job};

const SYSTEM: &str = "Long ago, in a deep forest beyond the blue mountains, there lived an old bear who knew all the stories \
    of the world. Every evening the animals came to his cave, the hares and the foxes, the deer and the hedgehogs, and \
    asked him for a tale. He never told the same one twice, and none of them was ever too long for those who listened. \
    When the moon was up he would look into the fire, scratch his ear and begin. ";

const BEGINNINGS: [&str; 8] = [
    "Once upon a time",
    "Once upon a time there was a little girl who",
    "There was once a king who had three sons.",
    "One day a hungry fox",
    "A poor woodcutter and his wife",
    "The",
    "\"Where are you going?\" asked the wolf.",
    "In the middle of the night",
];

/// Allows the tokens of `self.0`, the next ones after each other from `self.1` on, and then nothing.
struct OneOf(Vec<Vec<u32>>, usize);

impl Constraint for OneOf {
    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(OneOf(self.0.clone(), self.1))
    }

    fn allow(&mut self, mask: &mut [u32]) -> Result<(), String> {
        assert!(mask.iter().all(|word| *word == 0), "the mask comes cleared");
        for token in self.0.get(self.1).into_iter().flatten() {
            mask[*token as usize / 32] |= 1 << (token % 32);
        }
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<(), String> {
        assert!(self.0[self.1].contains(&token), "{token} was not allowed");
        self.1 += 1;
        Ok(())
    }
}

/// Job `i` of a mix of everything.
fn job(model: &Model, i: usize) -> Job {
    let beginning = BEGINNINGS[i % 8];
    let prompt = match i % 4 {
        0 => tokens(model, &format!("{SYSTEM}{beginning}")),
        1 => tokens(model, &format!("{}{beginning}", SYSTEM.repeat(1 + i % 3))),
        _ => tokens(model, beginning),
    };
    let plain = SamplerConfig { seed: i as u64 * 7 + 1, ..SamplerConfig::default() };
    let mut job = Job { sampler: plain.clone(), ..greedy(prompt, 12 + i) };
    match i % 11 {
        0 => job.sampler.temperature = 0.0,
        1 => {}
        2 => job.sampler = SamplerConfig { repeat_penalty: 1.3, frequency_penalty: 0.2, ..plain },
        3 => job.sampler = SamplerConfig { temperature: 0.0, presence_penalty: 0.9, repeat_last_n: 20, ..plain },
        4 => job.stop = vec![" and".to_owned(), "\n".to_owned()],
        5 => job.logit_bias = vec![(7, 4.0), (300, -50.0), (263, -100.0), (262, 2.5)],
        6 => (job.n, job.sampler.temperature) = (3, 1.1),
        7 => job.logprobs = Some(4),
        8 => job.sampler = SamplerConfig { top_k: 0, top_p: 1.0, min_p: 0.02, ..plain },
        9 => {
            job.sampler = SamplerConfig { top_k: 0, top_p: 1.0, min_p: 0.1, ..plain };
            job.logit_bias = vec![(11, 9.0)];
            job.ignore_eos = true;
        }
        _ => {
            let sets = (0..20).map(|step| (0..200).map(|j| (step * 31 + j * 17 + i as u32) % 4096).collect());
            job.constraint = Some(Box::new(OneOf(sets.collect(), 0)));
            (job.n, job.logprobs) = (2, Some(0));
        }
    }
    job
}

/// What [`Generation`] makes of a job that it can do.
fn generated(model: &Model, job: &Job) -> Option<Outcome> {
    if job.n > 1 || job.constraint.is_some() || !job.logit_bias.is_empty() {
        return None;
    }
    let options = GenerateOptions {
        max_tokens: job.max_tokens,
        sampler: job.sampler.clone(),
        stop: job.stop.clone(),
        ignore_eos: job.ignore_eos,
        logprobs: true,
        ..GenerateOptions::default()
    };
    let mut session = model.session(None).unwrap();
    let mut generation = Generation::new(&mut session, &job.prompt, &options).unwrap();
    let mut outcome = Outcome { answers: vec![Vec::new()], reasons: vec![None], ..Outcome::default() };
    for piece in generation.by_ref() {
        let piece = piece.unwrap();
        let logprobs = job
            .logprobs
            .map(|_| tritone_server::engine::job::Logprobs { chosen: piece.logprob.unwrap(), top: Vec::new() });
        let token = tritone_server::engine::job::Token { answer: 0, id: piece.id, text: piece.text, logprobs };
        outcome.answers[0].push(token);
    }
    outcome.reasons[0] = Some(match generation.finish().unwrap() {
        Finish::EndToken | Finish::StopString => FinishReason::Stop,
        Finish::MaxTokens | Finish::ContextFull => FinishReason::Length,
    });
    Some(outcome)
}

#[test]
fn thirty_two_at_once_and_each_alone() {
    let model = story();
    let options = EngineOptions { parallel: 6, chunk: 24, ..EngineOptions::default() };
    let together = start(&model, &options);
    let threads: Vec<_> = (0..32)
        .map(|i| {
            let (model, engine) = (model.clone(), together.clone());
            std::thread::spawn(move || {
                let job = job(&model, i);
                let n = job.n;
                // Every eighth client goes away after a few tokens.
                let most = if i % 8 == 7 { 1 + i / 3 } else { usize::MAX };
                listen(engine.submit(job).unwrap(), n, most)
            })
        })
        .collect();
    let mut outcomes: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert!(together.stats().cached_tokens > 0, "{:?}", together.stats());
    let (mut stopped, mut compared) = (0, 0);
    for (i, outcome) in outcomes.iter_mut().enumerate() {
        assert_eq!(outcome.failure, None);
        let mut alone = done(&start(&model, &EngineOptions::default()), job(&model, i));
        assert_eq!(alone.usage.unwrap().cached_tokens, 0);
        if i % 8 == 7 {
            for (alone, answer) in alone.answers.iter_mut().zip(&outcome.answers) {
                alone.truncate(answer.len());
            }
            assert_eq!(outcome.answers, alone.answers, "job {i}");
            continue;
        }
        stopped += usize::from(outcome.reasons[0] == Some(FinishReason::Stop));
        // Whether a prompt was known is all that may differ.
        let cached = outcome.usage.unwrap().cached_tokens;
        alone.usage.as_mut().unwrap().cached_tokens = cached;
        assert_eq!(*outcome, alone, "job {i}");
        if let Some(mut generated) = generated(&model, &job(&model, i)) {
            for token in alone.answers[0].iter_mut() {
                if let Some(logprobs) = &mut token.logprobs {
                    logprobs.top.clear();
                }
            }
            generated.usage = alone.usage;
            assert_eq!(alone, generated, "job {i}");
            compared += 1;
        }
    }
    assert!(stopped >= 3 && compared >= 12, "{stopped} {compared}");
}

#[test]
fn answers_of_a_job_are_those_of_seeds_in_turn() {
    let model = story();
    let engine = start(&model, &EngineOptions::default());
    let prompt = tokens(&model, SYSTEM);
    let sampler = SamplerConfig { seed: u64::MAX - 1, temperature: 1.2, ..SamplerConfig::default() };
    let three = done(&engine, Job { n: 3, sampler: sampler.clone(), ..greedy(prompt.clone(), 15) });
    let usage = three.usage.unwrap();
    assert_eq!((usage.prompt_tokens, usage.cached_tokens), (prompt.len(), 0), "the prompt counts once");
    for i in 0..3 {
        let sampler = SamplerConfig { seed: sampler.seed.wrapping_add(i as u64), ..sampler.clone() };
        let one = done(&engine, Job { sampler, ..greedy(prompt.clone(), 15) });
        assert_eq!((three.ids(i), three.text(i)), (one.ids(0), one.text(0)));
    }
    assert!(three.ids(0) != three.ids(1) || three.ids(1) != three.ids(2));
}

#[test]
fn a_conversation_begins_where_it_was() {
    let model = story();
    let engine = start(&model, &EngineOptions::default());
    let mut prompt = tokens(&model, SYSTEM);
    for (turn, beginning) in BEGINNINGS[..4].iter().enumerate() {
        let known = prompt.len();
        prompt.extend(tokens(&model, beginning));
        let here = done(&engine, greedy(prompt.clone(), 10));
        // All but the last token of the answer was fed; the first turn knows nothing.
        let expected = if turn == 0 { 0 } else { known - 1 };
        assert_eq!(here.usage.unwrap().cached_tokens, expected, "turn {turn}");
        let fresh = done(&start(&model, &EngineOptions::default()), greedy(prompt.clone(), 10));
        assert_eq!(here.answers, fresh.answers);
        prompt.extend(here.ids(0));
    }
    // The same prompt again: all is known but its last token.
    let again = done(&engine, greedy(prompt[..100].to_vec(), 3));
    assert_eq!(again.usage.unwrap().cached_tokens, 99);
}

#[test]
fn a_constraint_is_obeyed() {
    let model = story();
    let engine = start(&model, &EngineOptions::default());
    let prompt = tokens(&model, "Once upon a time");
    let sets = vec![vec![500, 501, 502], vec![77], vec![1000, 1001], vec![400, 600]];
    let sampler = SamplerConfig { temperature: 2.0, top_k: 2, repeat_penalty: 1.5, ..SamplerConfig::default() };
    let job = Job { constraint: Some(Box::new(OneOf(sets.clone(), 0))), sampler, n: 4, ..greedy(prompt.clone(), 50) };
    let outcome = done(&engine, job);
    for i in 0..4 {
        assert!(outcome.ids(i).iter().zip(&sets).all(|(id, set)| set.contains(id)), "{:?}", outcome.ids(i));
        assert_eq!(
            (outcome.ids(i).len(), outcome.reasons[i]),
            (4, Some(FinishReason::Stop)),
            "nothing more is allowed"
        );
    }
    // An end token ends even what would go on; a bias on what is not allowed changes nothing.
    let end = model.tokenizer().end_tokens()[0];
    let sets = vec![vec![500], vec![end], vec![500]];
    let constraint = Some(Box::new(OneOf(sets, 0)) as Box<dyn Constraint>);
    let job = Job { constraint, ignore_eos: true, logit_bias: vec![(501, 100.0)], ..greedy(prompt.clone(), 50) };
    let outcome = done(&engine, job);
    assert_eq!((outcome.ids(0), outcome.reasons[0]), (vec![500, end], Some(FinishReason::Stop)));
    // Nothing is allowed from the beginning.
    let job = Job { constraint: Some(Box::new(OneOf(Vec::new(), 0))), n: 2, ..greedy(prompt, 50) };
    let outcome = done(&engine, job);
    assert_eq!(outcome.reasons, [Some(FinishReason::Stop); 2]);
    assert!(outcome.answers.iter().all(Vec::is_empty) && outcome.usage.unwrap().completion_tokens == 0);
}

#[test]
fn log_probabilities_are_sorted_and_of_the_model_itself() {
    let model = story();
    let engine = start(&model, &EngineOptions::default());
    let prompt = tokens(&model, "There was once a king");
    let banned = done(&engine, greedy(prompt.clone(), 1)).ids(0)[0];
    let sampler = SamplerConfig { temperature: 0.0, repeat_penalty: 2.0, ..SamplerConfig::default() };
    let job = Job { logit_bias: vec![(banned, -100.0)], logprobs: Some(5), sampler, ..greedy(prompt.clone(), 8) };
    let outcome = done(&engine, job);
    let mut session = model.session(None).unwrap();
    session.prefill(&prompt, 0).unwrap();
    for (i, token) in outcome.answers[0].iter().enumerate() {
        let logprobs = token.logprobs.as_ref().unwrap();
        assert_ne!(token.id, banned);
        assert_eq!(logprobs.chosen.to_bits(), session.logprob(token.id).to_bits());
        let mut all: Vec<u32> = (0..model.config().vocab_size as u32).collect();
        all.sort_by(|a, b| session.logprob(*b).total_cmp(&session.logprob(*a)).then(a.cmp(b)));
        assert_eq!(logprobs.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), all[..5]);
        assert!(logprobs.top.iter().all(|(id, logprob)| logprob.to_bits() == session.logprob(*id).to_bits()));
        if i == 0 {
            assert_eq!(logprobs.top[0].0, banned, "before any bias");
        }
        session.decode(token.id).unwrap();
    }
}

/// With the logits that can matter and with all of them, which log-probabilities take.
#[test]
fn a_bias_is_reckoned_with_where_few_logits_are_computed() {
    let model = story();
    let engine = start(&model, &EngineOptions::default());
    // After so many steps the head has a copy that leaves most logits out.
    let plain = done(&engine, Job { ignore_eos: true, ..greedy(vec![1, 2, 3], 60) });
    let mut usual = plain.ids(0);
    usual.sort_unstable();
    usual.dedup();
    for top_k in [1, 3] {
        let job = |logprobs| Job {
            // Down with what would come, up with something else.
            logit_bias: usual.iter().map(|id| (*id, -100.0)).chain([(1000, 3.0), (2000, 1.0)]).collect(),
            sampler: SamplerConfig { top_k, top_p: 1.0, min_p: 0.0, ..SamplerConfig::default() },
            logprobs,
            ..greedy(tokens(&model, "There was once a king"), 60)
        };
        let (few, all) = (done(&engine, job(None)), done(&engine, job(Some(0))));
        assert_eq!((few.ids(0), few.text(0)), (all.ids(0), all.text(0)));
        assert!(few.ids(0).iter().all(|id| !usual.contains(id)));
    }
}
