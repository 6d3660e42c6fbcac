//! The time zone of this machine.

use std::path::{Path, PathBuf};

use crate::values::schedule::Zone;

/// Returns the zone that `$TZ` or /etc/localtime names; UTC where neither is an IANA name.
#[expect(clippy::disallowed_methods, reason = "the environment is read in `cli` only")]
pub(super) fn system_zone() -> String {
    let variable = std::env::var_os("TZ").map(PathBuf::from);
    let link = std::fs::read_link("/etc/localtime").ok();
    let names = [variable, link].into_iter().flatten().filter_map(|path| zone_of(&path));
    names.into_iter().next().unwrap_or_else(|| "UTC".to_owned())
}

/// The name at the end of a path such as `/usr/share/zoneinfo/Europe/Berlin`, or the name itself.
fn zone_of(path: &Path) -> Option<String> {
    let text = path.to_str()?.trim_start_matches(':');
    let name = text.rsplit_once("zoneinfo/").map_or(text, |(_, name)| name);
    name.parse::<Zone>().ok().map(|zone| zone.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_found_in_links_and_variables() {
        for (path, zone) in [
            ("/usr/share/zoneinfo/Europe/Berlin", Some("Europe/Berlin")),
            ("../usr/share/zoneinfo/Etc/UTC", Some("Etc/UTC")),
            (":America/New_York", Some("America/New_York")),
            ("CET-1CEST", None),
            ("/etc/elsewhere", None),
        ] {
            assert_eq!(zone_of(Path::new(path)).as_deref(), zone, "{path}");
        }
    }
}
