//! Numbers within bounds, as regular expressions over decimal digits.
//!
//! A number is written without exponent and has at most 15 digits, so that every reader that takes it for a double gets
//! another double for another number, and bounds hold for what is read as for what is written. Digits are compared from
//! the left: of two numbers with the same number of digits before the point, the first digit that differs decides.

use llguidance::derivre::RegexAst;
use serde_json::Number;
use std::cmp::Ordering;

/// Digits that a double tells apart.
const DIGITS: usize = 15;
/// The automaton of multiples has a state for each remainder.
const MAX_DIVISOR: u32 = 1_000;
/// Digits after the point, where the bounds leave room.
const FRACTION: usize = 6;

/// A number as digits.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Decimal {
    negative: bool,
    /// Without leading zeros; `0` for nothing.
    whole: String,
    /// Without trailing zeros.
    fraction: String,
}

impl Decimal {
    fn new(number: &Number) -> Self {
        // Rust writes doubles without exponent.
        let text = match number.as_f64() {
            Some(double) if number.is_f64() => double.to_string(),
            _ => number.to_string(),
        };
        let (negative, text) = text.strip_prefix('-').map_or((false, text.as_str()), |text| (true, text));
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let whole = match whole.trim_start_matches('0') {
            "" => "0",
            whole => whole,
        };
        let fraction = fraction.trim_end_matches('0');
        let zero = whole == "0" && fraction.is_empty();
        Self { negative: negative && !zero, whole: whole.to_owned(), fraction: fraction.to_owned() }
    }

    fn cmp(&self, other: &Self) -> Ordering {
        let order = match (self.negative, other.negative) {
            (false, true) => return Ordering::Greater,
            (true, false) => return Ordering::Less,
            _ => {
                (self.whole.len(), &self.whole, &self.fraction).cmp(&(other.whole.len(), &other.whole, &other.fraction))
            }
        };
        if self.negative { order.reverse() } else { order }
    }

    /// Whether no number that is written reaches as far from zero.
    fn is_far(&self) -> bool {
        self.whole.len() > DIGITS
    }
}

/// A lower or upper bound.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Bound {
    pub(super) number: Number,
    /// Whether the bound itself is excluded.
    pub(super) strict: bool,
}

impl Bound {
    /// Whether it leaves out more than another; `side`: how a number that is beyond compares.
    fn is_beyond(&self, other: &Bound, side: Ordering) -> bool {
        let order = Decimal::new(&self.number).cmp(&Decimal::new(&other.number));
        order == side || order == Ordering::Equal && self.strict
    }
}

/// The numbers that are asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Numbers {
    pub(super) lower: Option<Bound>,
    pub(super) upper: Option<Bound>,
    pub(super) integer: bool,
    /// Divides the number, which then has no fraction.
    pub(super) divisor: Option<u64>,
}

impl Numbers {
    /// Lets more bounds and one more divisor hold.
    pub(super) fn narrow(&mut self, lower: &[Bound], upper: &[Bound], divisor: Option<u32>) {
        for bound in lower {
            if self.lower.as_ref().is_none_or(|known| bound.is_beyond(known, Ordering::Greater)) {
                self.lower = Some(bound.clone());
            }
        }
        for bound in upper {
            if self.upper.as_ref().is_none_or(|known| bound.is_beyond(known, Ordering::Less)) {
                self.upper = Some(bound.clone());
            }
        }
        if let Some(divisor) = divisor.map(u64::from) {
            let known = self.divisor.unwrap_or(1);
            // One that is too large has no multiples here but 0.
            self.divisor = Some((known / common(known, divisor)).saturating_mul(divisor));
        }
    }

    /// What to match; it may match nothing.
    pub(super) fn regex(&self) -> RegexAst {
        let whole_only = self.integer || self.divisor.is_some();
        let bounds = self.lower.iter().chain(&self.upper);
        let longest = bounds.map(|bound| Decimal::new(&bound.number).whole.len()).max().unwrap_or(1);
        let whole = if whole_only { DIGITS } else { longest.clamp(DIGITS - FRACTION, DIGITS) };
        let fraction = if whole_only { 0 } else { FRACTION.min(DIGITS - whole) };
        let mut form = format!("(0|[1-9][0-9]{{0,{}}})", whole - 1);
        if fraction > 0 {
            form.push_str(&format!("(\\.[0-9]{{1,{fraction}}})?"));
        }
        let side = |negative: bool| {
            let mut parts = vec![RegexAst::Regex(form.clone())];
            parts.extend(self.lower.iter().map(|bound| magnitude(bound, true, negative)));
            parts.extend(self.upper.iter().map(|bound| magnitude(bound, false, negative)));
            parts.extend(self.divisor.map(|divisor| match u32::try_from(divisor) {
                Ok(divisor) if divisor <= MAX_DIVISOR => RegexAst::MultipleOf(divisor, 0),
                _ => RegexAst::Literal("0".into()),
            }));
            if negative {
                // There is no minus zero.
                parts.push(RegexAst::Regex("[0-9.]*[1-9][0-9.]*".into()));
            }
            RegexAst::And(parts)
        };
        RegexAst::Or(vec![side(false), RegexAst::Concat(vec![RegexAst::Literal("-".into()), side(true)])])
    }
}

fn common(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { common(b, a % b) }
}

/// Digits whose number, with a minus sign before them if `negative`, keeps the bound.
fn magnitude(bound: &Bound, is_lower: bool, negative: bool) -> RegexAst {
    let decimal = Decimal::new(&bound.number);
    if decimal.negative != negative {
        // The bound is on the other side of zero: all are beyond it, or none. Zero is no negative number.
        let all = is_lower == decimal.negative;
        return if all { RegexAst::Regex("[0-9.]*".into()) } else { RegexAst::NoMatch };
    }
    let at_least = is_lower != negative;
    if decimal.is_far() {
        return if at_least { RegexAst::NoMatch } else { RegexAst::Regex("[0-9.]*".into()) };
    }
    let ways = compared(&decimal, at_least, bound.strict);
    if ways.is_empty() { RegexAst::NoMatch } else { RegexAst::Regex(ways.join("|")) }
}

/// Digits that are above (`more`) or below a decimal, or equal to it unless that is excluded: alternatives, if any.
fn compared(decimal: &Decimal, more: bool, strict: bool) -> Vec<String> {
    let Decimal { whole, fraction, .. } = decimal;
    let any = "(\\.[0-9]+)?";
    let mut ways = Vec::new();
    if more {
        ways.push(format!("[1-9][0-9]{{{},}}{any}", whole.len()));
    } else if whole.len() == 2 {
        ways.push(format!("[0-9]{any}"));
    } else if whole.len() > 2 {
        ways.push(format!("(0|[1-9][0-9]{{0,{}}}){any}", whole.len() - 2));
    }
    let first_least = if whole.len() > 1 { b'1' } else { b'0' };
    for (i, digit) in whole.bytes().enumerate() {
        let least = if i == 0 { first_least } else { b'0' };
        if let Some(other) = other_digits(digit, least, more) {
            ways.push(format!("{}{other}[0-9]{{{}}}{any}", &whole[..i], whole.len() - i - 1));
        }
    }
    let mut after = Vec::new();
    for (i, digit) in fraction.bytes().enumerate() {
        if let Some(other) = other_digits(digit, b'0', more) {
            after.push(format!("\\.{}{other}[0-9]*", &fraction[..i]));
        }
        if !more {
            // What stops short of the fraction is less.
            after.push(if i == 0 { String::new() } else { format!("\\.{}", &fraction[..i]) });
        }
    }
    match (more, strict) {
        (true, true) => after.push(format!("\\.{fraction}[0-9]*[1-9][0-9]*")),
        (true, false) if fraction.is_empty() => after.push(any.into()),
        (true, false) => after.push(format!("\\.{fraction}[0-9]*")),
        (false, true) => {}
        (false, false) if fraction.is_empty() => after.push("(\\.0+)?".into()),
        (false, false) => after.push(format!("\\.{fraction}0*")),
    }
    if !after.is_empty() {
        ways.push(format!("{whole}({})", after.join("|")));
    }
    ways
}

/// The digits from `least` to 9 that are above or below one.
fn other_digits(digit: u8, least: u8, more: bool) -> Option<String> {
    let (first, last) = if more { (digit + 1, b'9') } else { (least, digit.wrapping_sub(1)) };
    (first <= last && last >= least).then(|| format!("[{}-{}]", char::from(first), char::from(last)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use llguidance::derivre::RegexBuilder;
    use proptest::prelude::*;

    fn number(text: &str) -> Number {
        serde_json::from_str(text).unwrap()
    }

    fn matches(numbers: &Numbers, text: &str) -> bool {
        let mut builder = RegexBuilder::new();
        let regex = builder.mk(&numbers.regex()).unwrap();
        builder.into_regex(regex).is_match(text)
    }

    /// A decimal of few digits, times 1000: exact.
    fn thousandths(text: &str) -> i64 {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let sign = if text.starts_with('-') { -1 } else { 1 };
        whole.parse::<i64>().unwrap() * 1000 + sign * format!("{fraction:0<3}").parse::<i64>().unwrap()
    }

    fn few_digits() -> impl Strategy<Value = String> {
        (any::<bool>(), 0..2000_i64, 0..3_u32, 0..1000_i64).prop_map(|(negative, whole, digits, fraction)| {
            let fraction = format!("{:03}", fraction)[..digits as usize].to_owned();
            let point = if digits > 0 { "." } else { "" };
            let sign = if negative && thousandths(&format!("{whole}{point}{fraction}")) != 0 { "-" } else { "" };
            format!("{sign}{whole}{point}{fraction}")
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1500))]
        #[test]
        fn bounds_hold(
            text in few_digits(), lower in few_digits(), upper in few_digits(), strict in any::<[bool; 2]>(),
            integer in any::<bool>(),
        ) {
            let numbers = Numbers {
                lower: Some(Bound { number: number(&lower), strict: strict[0] }),
                upper: Some(Bound { number: number(&upper), strict: strict[1] }),
                integer,
                divisor: None,
            };
            let (value, lower, upper) = (thousandths(&text), thousandths(&lower), thousandths(&upper));
            let holds = (lower < value || lower == value && !strict[0]) && (value < upper || value == upper && !strict[1]);
            prop_assert_eq!(matches(&numbers, &text), holds && !(integer && text.contains('.')));
        }
    }

    #[test]
    fn forms() {
        let any = Numbers::default();
        for text in ["0", "-1", "1.5", "-0.25", "100", "123456789.123456"] {
            assert!(matches(&any, text), "{text}");
        }
        for text in ["", "-", "-0", "01", "1.", ".5", "1e5", "+1", "1234567890", "1.1234567"] {
            assert!(!matches(&any, text), "{text}");
        }
        let thirds = Numbers { divisor: Some(3), ..Numbers::default() };
        assert!(["0", "3", "-12", "999"].iter().all(|text| matches(&thirds, text)));
        assert!(["1", "-4", "3.0", "-0"].iter().all(|text| !matches(&thirds, text)));
        let far = Numbers {
            lower: Some(Bound { number: number("-1e300"), strict: false }),
            upper: Some(Bound { number: number("9007199254740991"), strict: false }),
            integer: true,
            divisor: None,
        };
        assert!(matches(&far, "999999999999999") && matches(&far, "-7") && !matches(&far, "1000000000000000"));
    }
    #[test]
    fn bounds_are_narrowed() {
        let bound = |text: &str, strict| Bound { number: number(text), strict };
        let mut numbers = Numbers::default();
        numbers.narrow(&[bound("-2", false), bound("-10", true)], &[bound("7.25", false)], Some(4));
        numbers.narrow(&[bound("-2", true), bound("-2", false)], &[bound("70", false), bound("7.3", true)], Some(6));
        let expected = Numbers {
            lower: Some(bound("-2", true)),
            upper: Some(bound("7.25", false)),
            divisor: Some(12),
            integer: false,
        };
        assert_eq!(numbers, expected);
    }
}
