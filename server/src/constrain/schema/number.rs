//! Numbers within bounds, as regular expressions over decimal digits.
//!
//! A number is written without exponent and has at most 15 digits, so that every reader that takes it for a double gets
//! another double for another number, and bounds hold for what is read as for what is written. Digits are compared from
//! the left: of two numbers with the same number of digits before the point, the first digit that differs decides.

use llguidance::derivre::RegexAst;
use serde_json::Number;

/// Digits that a double tells apart.
const DIGITS: usize = 15;
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

/// The numbers that are asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Numbers {
    /// All must hold.
    pub(super) lower: Vec<Bound>,
    /// All must hold.
    pub(super) upper: Vec<Bound>,
    pub(super) integer: bool,
    /// All must divide the number, which then has no fraction.
    pub(super) divisors: Vec<u32>,
}

impl Numbers {
    /// What to match; it may match nothing.
    pub(super) fn regex(&self) -> RegexAst {
        let whole_only = self.integer || !self.divisors.is_empty();
        let bounds = || self.lower.iter().chain(&self.upper);
        let longest = bounds().map(|bound| Decimal::new(&bound.number).whole.len()).max().unwrap_or(1);
        let whole = if whole_only { DIGITS } else { longest.clamp(DIGITS - FRACTION, DIGITS) };
        let fraction = if whole_only { 0 } else { FRACTION.min(DIGITS - whole) };
        let mut form = format!("(0|[1-9][0-9]{{0,{}}})", whole - 1);
        if fraction > 0 {
            form.push_str(&format!("(\\.[0-9]{{1,{fraction}}})?"));
        }
        let side = |negative: bool| {
            let mut parts = vec![RegexAst::Regex(form.clone())];
            let lower = self.lower.iter().map(|bound| (bound, true));
            for (bound, is_lower) in lower.chain(self.upper.iter().map(|bound| (bound, false))) {
                parts.push(magnitude(bound, is_lower, negative));
            }
            for &divisor in &self.divisors {
                parts.push(RegexAst::MultipleOf(divisor, 0));
            }
            if negative {
                // There is no minus zero.
                parts.push(RegexAst::Regex("[0-9.]*[1-9][0-9.]*".into()));
            }
            RegexAst::And(parts)
        };
        RegexAst::Or(vec![side(false), RegexAst::Concat(vec![RegexAst::Literal("-".into()), side(true)])])
    }
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
                lower: vec![Bound { number: number(&lower), strict: strict[0] }],
                upper: vec![Bound { number: number(&upper), strict: strict[1] }],
                integer,
                divisors: Vec::new(),
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
        let thirds = Numbers { divisors: vec![3], ..Numbers::default() };
        assert!(["0", "3", "-12", "999"].iter().all(|text| matches(&thirds, text)));
        assert!(["1", "-4", "3.0", "-0"].iter().all(|text| !matches(&thirds, text)));
        let far = Numbers {
            lower: vec![Bound { number: number("-1e300"), strict: false }],
            upper: vec![Bound { number: number("9007199254740991"), strict: false }],
            integer: true,
            divisors: Vec::new(),
        };
        assert!(matches(&far, "999999999999999") && matches(&far, "-7") && !matches(&far, "1000000000000000"));
    }
}
