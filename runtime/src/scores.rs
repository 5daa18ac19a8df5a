//! Which logits a step is asked for, and which it gives.

/// What a caller needs of the logits after a token.
///
/// Everything but [`Need::All`] may leave out tokens that provably don't matter, and then does not read
/// their rows of the output head. The logits that it gives have the same bits either way.
#[derive(Clone, Debug, PartialEq)]
pub enum Need {
    /// All logits: a sum over all tokens, such as a probability.
    All,
    /// The `count` largest (where equal ones could be among them, all of these) and those of `tokens`.
    Top {
        /// How many.
        count: usize,
        /// Tokens whose logits are wanted whatever they are.
        tokens: Vec<u32>,
    },
    /// All that are at most this far below the largest.
    Within {
        /// How far, not negative.
        below: f32,
    },
}

impl Need {
    /// The largest `count` logits.
    #[must_use]
    pub fn top(count: usize) -> Need {
        Need::Top { count, tokens: Vec::new() }
    }

    /// What covers this need still if some more tokens come to be treated apart.
    #[must_use]
    pub(crate) fn with(self, more: &[u32]) -> Need {
        match self {
            Need::Top { count, mut tokens } => {
                tokens.extend_from_slice(more);
                Need::Top { count: count.saturating_add(more.len()), tokens }
            }
            other => other,
        }
    }

    /// What covers each of some needs of one kind; nothing if there are none.
    pub(crate) fn of_all<'n>(needs: impl Iterator<Item = &'n Need>) -> Option<Need> {
        needs.cloned().reduce(|all, need| match (all, need) {
            (Need::Top { count, mut tokens }, Need::Top { count: other, tokens: others }) => {
                tokens.extend(others);
                Need::Top { count: count.max(other), tokens }
            }
            (Need::Within { below }, Need::Within { below: other }) => Need::Within { below: below.max(other) },
            _ => Need::All,
        })
    }

    /// Whether whoever has this has all that `other` needs.
    #[must_use]
    pub(crate) fn covers(&self, other: &Need) -> bool {
        match (self, other) {
            (Need::All, _) => true,
            (Need::Top { count, tokens }, Need::Top { count: less, tokens: fewer }) => {
                count >= less && fewer.iter().all(|token| tokens.contains(token))
            }
            (Need::Within { below }, Need::Within { below: nearer }) => below >= nearer,
            _ => false,
        }
    }
}

/// Logits of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scores<'a> {
    /// One for each token id.
    All(&'a [f32]),
    /// Those of some tokens.
    Some {
        /// The tokens, rising.
        ids: &'a [u32],
        /// One for each of `ids`.
        logits: &'a [f32],
        /// How many tokens there are in all.
        vocab_size: usize,
    },
}

impl Scores<'_> {
    /// Ids and logits, ids rising.
    pub fn iter(&self) -> impl Iterator<Item = (u32, f32)> {
        let (ids, logits) = match *self {
            Scores::All(logits) => (None, logits),
            Scores::Some { ids, logits, .. } => (Some(ids), logits),
        };
        (0u32..).zip(logits).map(move |(i, &logit)| (ids.map_or(i, |ids| ids[i as usize]), logit))
    }

    /// How many tokens there are in all.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        match *self {
            Scores::All(logits) => logits.len(),
            Scores::Some { vocab_size, .. } => vocab_size,
        }
    }

    /// The token with the largest logit, the first of equal ones; nothing if there are none.
    #[must_use]
    pub fn best(&self) -> Option<u32> {
        let better = |best: Option<(u32, f32)>, next: (u32, f32)| match best {
            Some(best) if best.1 >= next.1 => Some(best),
            _ => Some(next),
        };
        self.iter().fold(None, better).map(|(id, _)| id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needs_cover_smaller_ones() {
        let top = |count, tokens: &[u32]| Need::Top { count, tokens: tokens.to_vec() };
        assert!(top(4, &[1, 2]).covers(&top(4, &[2])) && Need::All.covers(&Need::All));
        assert!(!top(4, &[1]).covers(&top(5, &[])) && !top(4, &[1]).covers(&top(1, &[2])));
        assert!(!top(4, &[]).covers(&Need::All) && !top(4, &[]).covers(&Need::Within { below: 0.0 }));
        assert!(Need::Within { below: 2.0 }.covers(&Need::Within { below: 2.0 }));
        assert!(!Need::Within { below: 2.0 }.covers(&Need::Within { below: 2.5 }));
        for needs in [
            [top(4, &[1]), top(2, &[7, 3])],
            [Need::Within { below: 2.0 }, Need::Within { below: 3.0 }],
            [Need::All, Need::All],
        ] {
            let all = Need::of_all(needs.iter()).unwrap();
            assert!(needs.iter().all(|need| all.covers(need)), "{all:?}");
        }
        assert_eq!(Need::of_all([].iter()), None);
        assert_eq!(top(1, &[5]).with(&[6, 7]), top(3, &[5, 6, 7]));
    }

    #[test]
    fn the_first_of_equal_logits_is_the_best() {
        assert_eq!(Scores::All(&[0.0, 3.0, -1.0, 3.0]).best(), Some(1));
        let some = Scores::Some { ids: &[4, 7, 9], logits: &[-3.0, -2.0, -2.0], vocab_size: 12 };
        assert_eq!((some.best(), some.vocab_size()), (Some(7), 12));
        assert_eq!(some.iter().collect::<Vec<_>>(), [(4, -3.0), (7, -2.0), (9, -2.0)]);
        assert_eq!(Scores::All(&[]).best(), None);
    }
}
