//! Sizes in bytes as users write and read them: `"10MiB"`.

use std::fmt;
use std::str::FromStr;

use crate::values::schema::text_quantities;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

const BINARY: [(&str, u32); 5] = [("B", 0), ("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40)];
const DECIMAL: [(&str, u64); 4] =
    [("kB", 1000), ("MB", 1_000_000), ("GB", 1_000_000_000), ("TB", 1_000_000_000_000)];

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, unit) = text.split_at(split);
        let wrong = || {
            format!(
                "invalid size {text:?}: expected a number and a unit, such as \"500KiB\", \"10MiB\" or \"2GiB\" (or kB, MB, GB)"
            )
        };
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        let unit = unit.trim_start();
        let each = DECIMAL
            .iter()
            .find(|(name, _)| *name == unit)
            .map(|(_, each)| *each)
            .or_else(|| BINARY.iter().find(|(name, _)| *name == unit).map(|(_, shift)| 1 << shift))
            .ok_or_else(wrong)?;
        number
            .checked_mul(each)
            .filter(|bytes| i64::try_from(*bytes).is_ok())
            .map(Self)
            .ok_or_else(wrong)
    }
}

impl fmt::Display for Size {
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, shift) =
            BINARY.iter().rev().find(|(_, shift)| self.0 >> shift > 0).copied().unwrap_or(("B", 0));
        match shift {
            0 => write!(f, "{} B", self.0),
            _ => write!(f, "{:.1} {unit}", self.0 as f64 / (1_u64 << shift) as f64),
        }
    }
}

text_quantities! { Size: "a size such as \"500KiB\" or \"10MiB\"", |size| size.0; }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_parsed_in_both_systems_and_formatted_in_binary() {
        let parsed =
            ["0B", "500KiB", "10MiB", "10 MB", "2GiB"].map(|text| text.parse::<Size>().unwrap().0);
        assert_eq!(parsed, [0, 512_000, 10_485_760, 10_000_000, 2_147_483_648]);
        assert_eq!(
            [0, 1023, 1536, 10_485_760].map(|n| Size(n).to_string()),
            ["0 B", "1023 B", "1.5 KiB", "10.0 MiB"]
        );
        insta::assert_snapshot!("10".parse::<Size>().unwrap_err(), @r#"invalid size "10": expected a number and a unit, such as "500KiB", "10MiB" or "2GiB" (or kB, MB, GB)"#);
    }
}
