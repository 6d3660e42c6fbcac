//! Implausible headers in responses.

use super::{WHOAMI, message, sweep, with_users};
use crate::fake::{Fault, Trouble};
use crate::program::figures;

fn limited(body: &str, header: Option<&str>) -> Trouble {
    Trouble::Answer {
        status: 429,
        headers: header.map(|value| ("retry-after", value.to_owned())).into_iter().collect(),
        body: body.to_owned(),
    }
}

#[tokio::test]
async fn a_retry_after_is_clamped_to_a_day() {
    let silent = r#"{"errcode": "M_LIMIT_EXCEEDED", "error": "Too Many Requests"}"#;
    let wish = |ms: &str| silent.replace('}', &format!(r#", "retry_after_ms": {ms}}}"#));
    let absurd = [
        limited(silent, Some("9223372036854775807")),
        limited(silent, Some("99999999999999999999999999")),
        limited("<html>", Some("18446744073709551615")),
        limited(&wish("18446744073709551615"), None),
        limited(&wish("1e300"), None),
    ];
    for trouble in absurd {
        let fake = with_users(1);
        fake.fault(Fault::new("GET", WHOAMI, trouble.clone()));
        let program = sweep(&fake, "");
        let report = program.apply("sweep").await;
        let message = message(&program, &fake, &report);
        assert_eq!(report["outcome"], "failed", "{trouble:?}: {report}");
        assert!(
            message.ends_with("(no time is left for another attempt)"),
            "{trouble:?}: {message}"
        );
    }
}

#[tokio::test]
async fn an_invalid_retry_after_is_a_short_wait() {
    for ms in ["-5", "\"soon\"", "null", "{}", "-1e300"] {
        let fake = with_users(1);
        let body = format!(
            r#"{{"errcode": "M_LIMIT_EXCEEDED", "error": "Too Many Requests", "retry_after_ms": {ms}}}"#
        );
        fake.fault(Fault::new("GET", WHOAMI, limited(&body, None)));
        let report = sweep(&fake, "").apply("sweep").await;
        assert_eq!(figures(&report), "succeeded: 1/1/0/0/0", "{ms}: {report}");
        assert_eq!(report["attempts"], 1, "{ms}");
    }
}

#[tokio::test]
async fn a_date_in_the_far_future_counts_as_a_wrong_clock() {
    for date in ["31 Dec 262142 23:59:59 +0000", "Fri, 31 Dec 9999 23:59:59 GMT"] {
        let fake = with_users(1);
        fake.fault(Fault::new("GET", WHOAMI, Trouble::Header("date", date)).always());
        let online = sweep(&fake, "").run(&["check", "--online"]).await;
        assert_eq!(online.code, 1, "{online:?}");
        assert!(online.stdout.contains("main: clocks agree: NO: "), "{date}: {online:?}");
    }
}
