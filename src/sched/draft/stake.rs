//! Whether one more drafted row pays in a step.
//!
//! A step that only decodes gives so many tokens in so much time. A row more gives another token with some chance, and
//! costs what a row costs: it pays while it brings tokens clearly faster than the step does without it. On a device that
//! waits for memory rows are nearly free and long drafts pay; on one that computes all the time only sure ones do.

/// Tokens that a row must be expected to bring, in those that its time brings without it: what is measured is not exact,
/// and a draft that only just pays gains nothing.
const MARGIN: f64 = 1.5;

/// What a step may still spend on drafts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stake {
    /// Rows left.
    pub rows: usize,
    /// What the step takes as formed so far, and the tokens that it is expected to give.
    pub us: f64,
    pub tokens: f64,
    /// What one more row costs.
    pub row_us: f64,
    /// Longest that the step may become.
    pub max_us: f64,
}

impl Stake {
    pub const NONE: Self = Self { rows: 0, us: 0.0, tokens: 0.0, row_us: 0.0, max_us: 0.0 };

    /// So many rows, whatever they cost.
    pub fn always(rows: usize) -> Self {
        Self { rows, us: 1.0, max_us: f64::INFINITY, ..Self::NONE }
    }

    /// Whether a guess that cannot fail would pay: else none does.
    pub fn is_open(&self) -> bool {
        self.pays(1.0)
    }

    /// Takes a row for a guess that is right with this chance, if that pays.
    pub fn take(&mut self, chance: f64) -> bool {
        let pays = self.pays(chance);
        if pays {
            self.rows -= 1;
            self.us += self.row_us;
            self.tokens += chance;
        }
        pays
    }

    fn pays(&self, chance: f64) -> bool {
        self.rows > 0 && self.us + self.row_us <= self.max_us && chance * self.us > MARGIN * self.row_us * self.tokens
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of one guess after the other, each right with the same chance.
    fn taken(mut stake: Stake, rate: f64) -> usize {
        (1..).take_while(|&i| stake.take(rate.powi(i))).count()
    }

    #[test]
    fn the_cheaper_a_row_and_the_surer_a_guess_the_more_rows() {
        let stake = |row_us, decodes: usize| Stake {
            rows: 16,
            us: 20_000.0,
            tokens: decodes as f64,
            row_us,
            max_us: f64::INFINITY,
        };
        assert_eq!(taken(stake(0.0, 1), 0.9), 16, "rows are free");
        assert_eq!(taken(stake(2000.0, 1), 0.05), 0);
        let (unsure, sure) = (taken(stake(2000.0, 1), 0.5), taken(stake(2000.0, 1), 0.9));
        assert!(unsure >= 1 && sure >= 2 * unsure, "{unsure} {sure}");
        // 16 streams on a device that computes all the time: a row costs as much as a token brings.
        assert_eq!(taken(stake(1300.0, 16), 0.9), 0);
        assert!(taken(stake(600.0, 16), 0.9) > 0);
    }

    #[test]
    fn bounded_by_rows_and_time_and_closed_where_nothing_is_known() {
        let stake = Stake { rows: 3, us: 100.0, tokens: 1.0, row_us: 10.0, max_us: 1000.0 };
        assert_eq!(taken(stake, 1.0), 3);
        assert_eq!(taken(Stake { max_us: 120.0, ..stake }, 1.0), 2);
        assert!(!Stake::NONE.is_open() && !Stake { us: 0.0, ..stake }.is_open());
        assert_eq!(taken(Stake::always(5), 0.01), 5);
    }
}
