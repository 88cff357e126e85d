//! Kubernetes' quantities, as far as they are whole numbers in the end: `10M`, `1.5Gi`, `2e6`.

/// The number that a quantity stands for, rounded up; `None` if it is none, negative, or beyond `u64`.
pub fn whole(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.strip_prefix('+').unwrap_or(text);
    let end = digits
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(digits.len());
    let (number, suffix) = digits.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || number.len() > 30 {
        return None;
    }
    let mantissa: u128 = format!("{whole}{fraction}").parse().ok()?;
    let (times, over) = scale(suffix)?;
    let over = over.checked_mul(10u128.checked_pow(u32::try_from(fraction.len()).ok()?)?)?;
    let product = mantissa.checked_mul(times)?;
    u64::try_from(product.div_ceil(over)).ok()
}

/// A suffix as a fraction.
fn scale(suffix: &str) -> Option<(u128, u128)> {
    let ten = |exponent: u32| 10u128.checked_pow(exponent);
    let times = match suffix {
        "" => 1,
        "n" => return Some((1, 1_000_000_000)),
        "u" => return Some((1, 1_000_000)),
        "m" => return Some((1, 1_000)),
        "k" => ten(3)?,
        "M" => ten(6)?,
        "G" => ten(9)?,
        "T" => ten(12)?,
        "P" => ten(15)?,
        "E" => ten(18)?,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "Pi" => 1 << 50,
        "Ei" => 1 << 60,
        exponent => {
            let exponent = exponent.strip_prefix(['e', 'E'])?;
            let bare = exponent.strip_prefix('+').unwrap_or(exponent);
            if let Some(negative) = bare.strip_prefix('-') {
                return Some((1, ten(negative.parse().ok()?)?));
            }
            ten(bare.parse().ok()?)?
        }
    };
    Some((times, 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        for (text, expected) in [
            ("0", Some(0)),
            ("10M", Some(10_000_000)),
            ("10Mi", Some(10_485_760)),
            ("1.5G", Some(1_500_000_000)),
            (".5k", Some(500)),
            ("5.", Some(5)),
            ("2e6", Some(2_000_000)),
            ("2E3", Some(2_000)),
            ("1500m", Some(2)),
            ("1e-1", Some(1)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("16Ei", None),
            ("1e99", None),
            ("", None),
            (".", None),
            ("-1", None),
            ("1.2.3", None),
            ("10 M", None),
            ("10Mb", None),
            ("fast", None),
        ] {
            assert_eq!(whole(text), expected, "{text}");
        }
    }
}
