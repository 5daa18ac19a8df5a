//! Speculation without a second model: guesses at the next tokens, read together with the one that is
//! certain.
//!
//! Text repeats itself. Where the last two to four tokens stood before, what followed them then is
//! likely to follow again (prompt lookup: Saxena 2023, <https://github.com/apoorvumang/prompt-lookup-decoding>;
//! the check of a guess in one batch: Leviathan and others 2023, <https://arxiv.org/abs/2211.17192>).
//! [`Session::decode_with_draft`] feeds the guess in one batch with the token before it, which costs
//! less than as many single steps, and keeps the logits of every position. The sampler then goes on
//! as always, token by token; logits that were computed for another token than it chose are thrown
//! away. Since logits do not depend on the batch, neither the tokens nor the random numbers can
//! differ from those without speculation. Clocks decide only how long a guess is.

use crate::error::Result;
use crate::sampler::Sampler;
use crate::scores::Need;
use crate::session::Session;
use std::collections::HashMap;
use std::time::Instant;

/// The longest guess, in tokens.
const LONGEST: usize = 7;

/// Whether tokens are guessed ahead. The output is the same in all cases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Speculation {
    /// One token at a time.
    Off,
    /// As long a guess as makes this machine faster, none where it does not.
    #[default]
    Adaptive,
    /// The longest guess there is at every step, whatever it costs.
    Always,
}

/// What speculation did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) steps: usize,
    pub(crate) drafted: usize,
    pub(crate) accepted: usize,
}

/// Feeds the tokens of one generation to its session, with guesses where they pay.
#[derive(Debug)]
pub(crate) struct Speculator {
    mode: Speculation,
    index: NgramIndex,
    odds: Odds,
    pace: Pace,
    counts: Counts,
}

impl Speculator {
    pub(crate) fn new(mode: Speculation) -> Speculator {
        Speculator {
            mode,
            index: NgramIndex::default(),
            odds: Odds::default(),
            pace: Pace::default(),
            counts: Counts::default(),
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// Brings `session` behind `token`; at most `wanted` tokens are of use after the one that is sampled next. The
    /// scores are what `sampler` needs, all of them where there is none.
    pub(crate) fn feed(
        &mut self,
        session: &mut Session,
        token: u32,
        wanted: usize,
        sampler: Option<&Sampler>,
    ) -> Result<()> {
        let need = sampler.map_or(Need::All, |sampler| sampler.need_after(session.tokens(), token));
        if self.mode == Speculation::Off {
            self.counts.steps += 1;
            return session.decode_for(token, &need).map(|_| ());
        }
        self.index.extend(&session.tokens()[self.index.len()..]);
        self.odds.observe(self.index.next(), token);
        self.index.extend(&[token]);
        if session.foresees(token) {
            self.counts.accepted += 1;
            self.pace.accepted();
            return session.decode_for(token, &need).map(|_| ());
        }
        let room = session.context_length().saturating_sub(session.position() + 1).min(wanted).min(LONGEST);
        let length = match (self.index.next(), self.mode) {
            (None, _) => 0,
            (Some(_), Speculation::Always) => room,
            (Some((_, n)), _) => self.pace.best_length(room, |ahead| self.odds.chance(n, ahead)),
        };
        let draft = self.index.draft(length);
        let began = Instant::now();
        // What is needed after a token of the draft is among this: the draft is all that comes between.
        let need = need.with(&draft);
        session.decode_with_draft(token, &draft, &need)?;
        self.pace.record(1 + draft.len(), began.elapsed().as_secs_f64());
        self.counts.steps += 1;
        self.counts.drafted += draft.len();
        Ok(())
    }
}

/// Where each run of two, three and four tokens stood last.
///
/// A token costs three insertions and three lookups, however long the text and whatever is in it (the
/// standard library's hash tables have secret keys). A token takes some 100 bytes.
#[derive(Debug, Default)]
struct NgramIndex {
    tokens: Vec<u32>,
    twos: HashMap<[u32; 2], usize>,
    threes: HashMap<[u32; 3], usize>,
    fours: HashMap<[u32; 4], usize>,
    /// Where the text went on after the last place that ended like it does now, and the length of what is the same.
    found: Option<(usize, usize)>,
}

impl NgramIndex {
    fn len(&self) -> usize {
        self.tokens.len()
    }

    fn extend(&mut self, tokens: &[u32]) {
        for &token in tokens {
            // What ends at the last token is entered when the token after it is known, so that a
            // lookup never finds the end of the text itself.
            let next = self.tokens.len();
            if let Some(gram) = self.tokens.last_chunk() {
                self.twos.insert(*gram, next);
            }
            if let Some(gram) = self.tokens.last_chunk() {
                self.threes.insert(*gram, next);
            }
            if let Some(gram) = self.tokens.last_chunk() {
                self.fours.insert(*gram, next);
            }
            self.tokens.push(token);
        }
        if !tokens.is_empty() {
            let four = || self.fours.get(self.tokens.last_chunk()?).map(|&next| (next, 4));
            let three = || self.threes.get(self.tokens.last_chunk()?).map(|&next| (next, 3));
            let two = || self.twos.get(self.tokens.last_chunk()?).map(|&next| (next, 2));
            self.found = four().or_else(three).or_else(two);
        }
    }

    /// The likeliest next token and how many tokens before it stood before the last time.
    fn next(&self) -> Option<(u32, usize)> {
        self.found.map(|(next, n)| (self.tokens[next], n))
    }

    /// The `length` tokens that followed the last time; a run that reaches the end of the text
    /// goes on with itself. Empty where nothing was found.
    fn draft(&self, length: usize) -> Vec<u32> {
        let Some((next, _)) = self.found else { return Vec::new() };
        let period = self.tokens.len() - next;
        (0..length).map(|i| self.tokens[next + i % period]).collect()
    }
}

/// How often guesses were right lately. Every token is compared with what would have been guessed, so this
/// costs no time and is known before the first guess is fed.
#[derive(Debug)]
struct Odds {
    /// For a guess that two, three or four tokens led to, then for one after one, two to three,
    /// four to seven, eight and more right ones in sequence.
    classes: [Share; 7],
    /// Right guesses in sequence up to now.
    streak: usize,
}

/// A share of hits that forgets slowly.
#[derive(Clone, Copy, Debug)]
struct Share {
    share: f64,
    weight: f64,
}

impl Default for Odds {
    fn default() -> Odds {
        Odds { classes: [Share { share: 0.5, weight: 2.0 }; 7], streak: 0 }
    }
}

impl Odds {
    /// How many observations a share remembers.
    const MEMORY: f64 = 32.0;

    fn class(n: usize, streak: usize) -> usize {
        match streak {
            0 => n - 2,
            1 => 3,
            2..4 => 4,
            4..8 => 5,
            _ => 6,
        }
    }

    /// `guess` is a token and the number of tokens that led to it, `token` what came.
    fn observe(&mut self, guess: Option<(u32, usize)>, token: u32) {
        let Some((guess, n)) = guess else {
            self.streak = 0;
            return;
        };
        let share = &mut self.classes[Odds::class(n, self.streak)];
        let hit = guess == token;
        share.weight = (share.weight + 1.0).min(Odds::MEMORY);
        share.share += (f64::from(u8::from(hit)) - share.share) / share.weight;
        self.streak = if hit { self.streak + 1 } else { 0 };
    }

    /// The probability that token `ahead` (from 0) of a guess is right if those before it are.
    fn chance(&self, n: usize, ahead: usize) -> f64 {
        self.classes[Odds::class(n, self.streak + ahead)].share
    }
}

/// What steps of 1 to 8 tokens take, and whether guessing has paid.
#[derive(Debug, Default)]
struct Pace {
    /// Seconds of the last steps, by the number of tokens less one.
    recent: [Vec<f64>; LONGEST + 1],
    /// Where the next time goes when `recent` is full.
    oldest: [usize; LONGEST + 1],
    /// Seconds of all steps.
    total: f64,
    /// Seconds that guesses have cost (negative) since they last paid for themselves.
    balance: f64,
}

impl Pace {
    /// Times of which the median is taken.
    const MEMORY: usize = 7;
    /// Single steps before the first guess.
    const WARM: usize = 3;
    /// A guess must promise to be faster by this factor.
    const MARGIN: f64 = 1.05;
    /// The share of the time that may be lost in finding out what longer steps take.
    const ALLOWANCE: f64 = 0.01;
    /// Lengths of guesses that are tried out.
    const TRIALS: [usize; 3] = [1, 3, 7];

    /// A step of `batch` tokens (at most `LONGEST + 1`) took `seconds`.
    fn record(&mut self, batch: usize, seconds: f64) {
        let times = &mut self.recent[batch - 1];
        if times.len() < Pace::MEMORY {
            times.push(seconds);
        } else {
            let oldest = &mut self.oldest[batch - 1];
            times[*oldest] = seconds;
            *oldest = (*oldest + 1) % Pace::MEMORY;
        }
        self.total += seconds;
        if batch > 1
            && let Some(single) = self.median(1)
        {
            // More than so many single steps is the machine's doing, not the guess's.
            self.balance -= (seconds - single).clamp(0.0, (batch - 1) as f64 * single);
        }
    }

    /// A token of a guess was right: a single step less.
    fn accepted(&mut self) {
        self.balance = (self.balance + self.median(1).unwrap_or(0.0)).min(0.0);
    }

    fn median(&self, batch: usize) -> Option<f64> {
        let mut times = self.recent[batch - 1].clone();
        times.sort_by(f64::total_cmp);
        times.get(times.len() / 2).copied()
    }

    /// Seconds of a step of `batch` tokens, on a line through its measured neighbours where it was not
    /// measured. `single` is that of one token.
    fn estimate(&self, batch: usize, single: f64) -> f64 {
        if let Some(seconds) = self.median(batch) {
            return seconds;
        }
        let measured = |b: usize| self.median(b).map(|seconds| (b as f64, seconds));
        let below = (1..batch).rev().find_map(measured).unwrap_or((1.0, single));
        let above = (batch + 1..=LONGEST + 1).find_map(measured);
        let slope = match above {
            Some(above) => (above.1 - below.1) / (above.0 - below.0),
            // Hopeful where only single steps are known: it is tried once.
            None if below.0 == 1.0 => single / 4.0,
            None => (below.1 - single) / (below.0 - 1.0),
        };
        below.1 + slope.max(0.0) * (batch as f64 - below.0)
    }

    /// How many tokens to guess, at most `room`; `chance(i)` is the probability of token `i` if those
    /// before it are right.
    fn best_length(&self, room: usize, chance: impl Fn(usize) -> f64) -> usize {
        let Some(single) = self.median(1).filter(|_| self.recent[0].len() >= Pace::WARM) else { return 0 };
        let allowed = single + Pace::ALLOWANCE * self.total + self.balance;
        if room == 0 || allowed < 0.0 {
            return 0;
        }
        // Lengths are explored by doubling, so that the first surprise is a small one.
        let tried = (1..=LONGEST).rev().find(|length| !self.recent[*length].is_empty()).unwrap_or(0);
        let (mut best, mut best_rate) = (0, Pace::MARGIN / single);
        let (mut all_right, mut expected) = (1.0, 1.0);
        for length in 1..=room.min(2 * tried + 1) {
            all_right *= chance(length - 1);
            expected += all_right;
            let rate = expected / self.estimate(length + 1, single);
            if rate > best_rate {
                (best, best_rate) = (length, rate);
            }
        }
        if best > 0 || chance(0) < 0.5 {
            return best;
        }
        let fewest = Pace::TRIALS.into_iter().filter(|length| *length <= room);
        let trial = fewest.min_by_key(|length| self.recent[*length].len()).unwrap_or(0);
        if allowed >= trial as f64 * single { trial } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition: the last place before the end where the last four, else three, else two tokens stand.
    fn naive(tokens: &[u32]) -> Option<(usize, usize)> {
        (2..=4).rev().filter(|n| tokens.len() > *n).find_map(|n| {
            let end = &tokens[tokens.len() - n..];
            (n..tokens.len()).rev().find(|next| &tokens[next - n..*next] == end).map(|next| (next, n))
        })
    }

    proptest! {
        #[test]
        fn the_index_is_the_naive_search(
            tokens in prop::collection::vec(0u32..4, 0..120),
            cuts in prop::collection::vec(1usize..9, 1..40),
            length in 0usize..12,
        ) {
            let mut index = NgramIndex::default();
            let mut cuts = cuts.iter().cycle();
            while index.len() < tokens.len() {
                let to = (index.len() + cuts.next().unwrap()).min(tokens.len());
                index.extend(&tokens[index.len()..to]);
                let found = naive(&tokens[..to]);
                prop_assert_eq!(index.found, found);
                // One token after the other, each read from the text with the guess so far.
                let mut text = tokens[..to].to_vec();
                if let Some((next, _)) = found {
                    (0..length).for_each(|i| text.push(text[next + i]));
                }
                prop_assert_eq!(index.draft(length), &text[to..]);
            }
        }
    }

    #[test]
    fn a_run_of_one_token_takes_linear_time() {
        let mut index = NgramIndex::default();
        for _ in 0..300_000 {
            index.extend(&[7]);
        }
        assert_eq!((index.twos.len(), index.threes.len(), index.fours.len()), (1, 1, 1));
        assert_eq!(index.draft(LONGEST), [7; LONGEST]);
    }

    /// Seconds of 1000 tokens of which each guess is right when `right(token)`; a step of `b` tokens takes `cost(b)`.
    fn generate(cost: impl Fn(usize) -> f64, right: impl Fn(usize) -> bool) -> (f64, usize) {
        let (mut pace, mut odds) = (Pace::default(), Odds::default());
        let (mut seconds, mut ahead, mut drafted) = (0.0, 0, 0);
        for token in 0..1000 {
            let guess = if right(token) { 1 } else { 2 };
            odds.observe(Some((guess, 3)), 1);
            if ahead > 0 && guess == 1 {
                ahead -= 1;
                pace.accepted();
                continue;
            }
            ahead = pace.best_length(LONGEST, |i| odds.chance(3, i));
            drafted += ahead;
            seconds += cost(1 + ahead);
            pace.record(1 + ahead, cost(1 + ahead));
        }
        (seconds, drafted)
    }

    #[test]
    fn nothing_is_lost_where_batches_cost_as_much_as_single_steps() {
        for every in [1, 2, 3, 10] {
            let (seconds, _) = generate(|batch| batch as f64, |token| token % every != 1);
            assert!(seconds < 1025.0, "{seconds} with every guess {every} wrong");
        }
    }

    #[test]
    fn nothing_is_lost_where_guesses_are_wrong() {
        let (seconds, drafted) = generate(|batch| 1.0 + 0.1 * (batch - 1) as f64, |_| false);
        assert!(seconds < 1010.0, "{seconds}");
        assert!(drafted < 40, "{drafted}");
    }

    #[test]
    fn long_guesses_are_made_where_they_are_cheap_and_right() {
        let (seconds, _) = generate(|batch| 1.0 + 0.1 * (batch - 1) as f64, |_| true);
        assert!(seconds < 250.0, "{seconds}");
        let (seconds, _) = generate(|batch| 1.0 + 0.1 * (batch - 1) as f64, |token| token % 10 != 1);
        assert!(seconds < 500.0, "{seconds}");
    }

    #[test]
    fn batches_that_are_cheap_only_when_long_are_found() {
        let (seconds, _) = generate(|batch| if batch < 4 { batch as f64 } else { 2.0 }, |_| true);
        assert!(seconds < 600.0, "{seconds}");
    }

    #[test]
    fn times_between_measured_ones_are_on_a_line() {
        let mut pace = Pace::default();
        pace.record(1, 1.0);
        assert_eq!(pace.estimate(3, 1.0), 1.5);
        pace.record(2, 2.0);
        assert_eq!(pace.estimate(4, 1.0), 4.0);
        pace.record(8, 5.0);
        assert_eq!(pace.estimate(5, 1.0), 3.5);
    }
}
