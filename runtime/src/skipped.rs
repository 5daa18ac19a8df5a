//! What products left out because it could not change a result.

/// How much of up, of down and of the output head was needed by what went through a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    rows: Count,
    columns: Count,
    low_head: Count,
    head: Count,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    needed: u64,
    all: u64,
}

impl Count {
    fn add(&mut self, needed: usize, all: usize) {
        self.needed += needed as u64;
        self.all += all as u64;
    }

    fn share(self) -> Option<f64> {
        (self.all > 0).then(|| self.needed as f64 / self.all as f64)
    }
}

impl Skipped {
    /// A step needed so many rows of up.
    pub(crate) fn rows(&mut self, needed: usize, all: usize) {
        self.rows.add(needed, all);
    }

    /// A step needed so many columns of down.
    pub(crate) fn columns(&mut self, needed: usize, all: usize) {
        self.columns.add(needed, all);
    }

    /// A step needed so many rows of the second half of the output head's copy, and so many of the head.
    pub(crate) fn head(&mut self, low: usize, needed: usize, all: usize) {
        self.low_head.add(low, all);
        self.head.add(needed, all);
    }

    /// What shares of the matrices were needed; nothing where the model or its layout lets nothing be
    /// skipped, or no token has passed.
    #[must_use]
    pub fn density(&self) -> Density {
        Density {
            up_rows: self.rows.share(),
            down_columns: self.columns.share(),
            head_low_rows: self.low_head.share(),
            head_rows: self.head.share(),
        }
    }
}

/// Shares of matrices that are read, from 0 to 1; `None` where all of a matrix always is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Density {
    /// Rows of up: those whose gate is positive. Of single tokens only: several at once may skip rows too, but share what is read.
    pub up_rows: Option<f64>,
    /// Columns of down: those whose activation is not 0 after rounding.
    pub down_columns: Option<f64>,
    /// Rows of the output head's 8-bit copy that were left after its first four bits, so that the others were read.
    pub head_low_rows: Option<f64>,
    /// Rows of the output head that were computed after its copy had been looked at.
    pub head_rows: Option<f64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_what_was_counted() {
        let mut skipped = Skipped::default();
        assert_eq!(skipped.density(), Density::default());
        skipped.rows(1, 4);
        skipped.rows(2, 4);
        skipped.columns(0, 10);
        let expected = Density { up_rows: Some(0.375), down_columns: Some(0.0), ..Density::default() };
        assert_eq!(skipped.density(), expected);
        skipped.head(2, 1, 8);
        assert_eq!(skipped.density(), Density { head_low_rows: Some(0.25), head_rows: Some(0.125), ..expected });
    }
}
