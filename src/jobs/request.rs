//! `request`: one request to any endpoint, for what has no kind yet.

use chrono::TimeDelta;
use futures_util::future::BoxFuture;
use minijinja::{Environment, ErrorKind, UndefinedBehavior};
use reqwest::{Method, Url};
use serde_json::Value;

use crate::change::{Change, Lane, Made, Plan, Work};
use crate::clock::Timestamp;
use crate::job::{Context, Failure, Job, Needs};
use crate::keys;
use crate::keys::{Key, Mistake, Table};
use crate::length::Length;
use crate::report::Action;
use crate::synapse::{self, Base, RawRequest, Version, Writer};
use crate::words;

keys! {
    pub struct Keys {
        /// The HTTP method.
        pub method: Verb,
        /// The path under the homeserver's URL, written as it goes out: reserved characters percent-encoded (`urlencode` does that in a template).
        pub path: RawPath,
        /// Which of the homeserver's addresses: "homeserver" (`url`) or "media" (`media_url`).
        pub base: Where = "\"homeserver\"",
        /// Query parameters, a table of strings, numbers and booleans.
        pub query: Option<Value>,
        /// The JSON body.
        pub body: Option<Value>,
        /// The statuses that count as success.
        pub expect: Vec<u16> = "[200]",
        /// Whether it may be sent again when it is unknown what became of it.
        pub repeatable: bool = "false",
    }
}

words! {
    pub enum Verb {
        Get = "GET",
        Post = "POST",
        Put = "PUT",
        Delete = "DELETE",
        Patch = "PATCH",
    }
}

words! {
    pub enum Where {
        Homeserver = "homeserver",
        Media = "media",
    }
}

#[derive(Debug, Clone)]
pub struct Request {
    keys: Keys,
}

impl Job for Request {
    const KIND: &'static str = "request";
    const ABOUT: &'static str = "Sends one request to any Admin or Client-Server endpoint, with the homeserver's token. Strings in path, query and body are templates: \
        {{ ago_ms(\"30d\") }}, {{ ago_seconds(\"30d\") }}, {{ now_ms() }} and the filter urlencode. It knows nothing of what the endpoint does: a dry run shows the request and sends nothing at all.";
    const KEYS: &'static [Key] = Keys::KEYS;
    const ACTION: Action = Action::Request;
    const COUNTS: bool = false;
    const NEEDS: Needs = Needs {
        synapse: Version(0, 0),
        clock: true,
        not_under_mas: None,
        plans_offline: true,
        media: false,
    };

    fn read(table: &Table<'_, '_>, now: Timestamp, mistakes: &mut Vec<Mistake>) -> Option<Self> {
        let before = mistakes.len();
        table.reject_empty(&["expect"], mistakes);
        let job = Self { keys: Keys::read(table, mistakes)? };
        let parameters = match &job.keys.query {
            None => Some(true),
            Some(Value::Object(map)) => {
                Some(map.values().all(|value| !value.is_array() && !value.is_object()))
            }
            Some(_) => None,
        };
        if parameters != Some(true) {
            mistakes.push(Mistake::new(
                table.span_of("query"),
                "expected a table of strings, numbers and booleans such as { before_ts = \"{{ ago_ms('30d') }}\" }; a parameter that comes twice can stand in `path`",
            ));
        }
        // A template that cannot be filled in is a mistake of the config, not of the night it runs in.
        for (key, rendered) in [
            ("path", render(&job.keys.path.0, now).and_then(|path| raw_path(&path))),
            ("query", filled(job.keys.query.as_ref(), now).map(drop)),
            ("body", filled(job.keys.body.as_ref(), now).map(drop)),
        ] {
            if let Err(error) = rendered {
                mistakes.push(Mistake::new(table.span_of(key), error));
            }
        }
        (mistakes.len() == before).then_some(job)
    }

    fn is_repeatable(&self) -> bool {
        self.keys.repeatable || self.keys.method == Verb::Get
    }

    async fn plan(&self, context: &Context<'_>, plan: &mut Plan) -> Result<(), Failure> {
        let raw = self.filled(context.at).map_err(Failure::Refused)?;
        plan.work = Work::Changes(vec![Box::new(Send { raw })]);
        Ok(())
    }
}

impl Request {
    fn filled(&self, at: Timestamp) -> Result<RawRequest, String> {
        let query = match filled(self.keys.query.as_ref(), at)? {
            Some(Value::Object(map)) => map
                .into_iter()
                .map(|(key, value)| {
                    let value = match value {
                        Value::String(text) => text,
                        other => other.to_string(),
                    };
                    (key, value)
                })
                .collect(),
            _ => Vec::new(),
        };
        let path = render(&self.keys.path.0, at)?;
        raw_path(&path)?;
        Ok(RawRequest {
            method: self.keys.method.as_str().parse().unwrap_or(Method::GET),
            base: match self.keys.base {
                Where::Homeserver => Base::Homeserver,
                Where::Media => Base::Media,
            },
            path,
            query,
            body: filled(self.keys.body.as_ref(), at)?,
            expect: self.keys.expect.clone(),
            repeatable: self.keys.repeatable,
        })
    }
}

#[derive(Debug)]
struct Send {
    raw: RawRequest,
}

impl Change for Send {
    fn action(&self) -> Action {
        Action::Request
    }

    fn target(&self) -> String {
        let RawRequest { method, path, query, body, .. } = &self.raw;
        let query: Vec<String> =
            query.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let query = if query.is_empty() {
            String::new()
        } else {
            format!("{}{}", if path.contains('?') { '&' } else { '?' }, query.join("&"))
        };
        let body = body.as_ref().map(|body| format!(" {body}")).unwrap_or_default();
        format!("{method} {path}{query}{body}")
    }

    fn lane(&self) -> Lane {
        let sets_ids =
            self.raw.body.as_ref().is_some_and(|body| body.get("external_ids").is_some());
        if sets_ids { Lane::ExternalIds } else { Lane::Free }
    }

    fn make<'a>(
        &'a self,
        writer: &'a Writer,
        _before: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<Made, synapse::Error>> {
        Box::pin(async move {
            match writer.request(&self.raw).await {
                Err(error) if error.may_be_at_work() && !self.raw.repeatable => {
                    Err(error.never_again())
                }
                answered => answered.map(|()| Made::things(1)),
            }
        })
    }
}

/// Fills every string of a value.
fn filled(value: Option<&Value>, at: Timestamp) -> Result<Option<Value>, String> {
    fn fill(value: &Value, at: Timestamp) -> Result<Value, String> {
        Ok(match value {
            Value::String(text) => Value::String(render(text, at)?),
            Value::Array(items) => {
                Value::Array(items.iter().map(|item| fill(item, at)).collect::<Result<_, _>>()?)
            }
            Value::Object(map) => {
                Value::Object(
                    map.iter()
                        .map(|(key, item)| Ok((key.clone(), fill(item, at)?)))
                        .collect::<Result<_, String>>()?,
                )
            }
            other => other.clone(),
        })
    }
    value.map(|value| fill(value, at)).transpose()
}

fn render(template: &str, at: Timestamp) -> Result<String, String> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.add_function("ago_ms", move |length: String| {
        ago(at, &length).map(|moment| moment.timestamp_millis())
    });
    environment.add_function("ago_seconds", move |length: String| {
        ago(at, &length).map(|moment| moment.timestamp())
    });
    environment.add_function("now_ms", move || at.timestamp_millis());
    // minijinja's own filter leaves `/` as it is, and a room id may hold one.
    environment.add_filter("urlencode", |text: String| percent_encoded(&text));
    environment.render_str(template, ()).map_err(|error| {
        format!(
            "the template {template:?} cannot be filled in: {}",
            error.detail().map_or_else(|| error.kind().to_string(), str::to_owned)
        )
    })
}

fn percent_encoded(text: &str) -> String {
    use std::fmt::Write as _;
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}

fn ago(at: Timestamp, length: &str) -> Result<Timestamp, minijinja::Error> {
    let length: Length = length
        .parse()
        .map_err(|error: String| minijinja::Error::new(ErrorKind::InvalidOperation, error))?;
    at.checked_sub_signed(length.as_chrono().max(TimeDelta::zero()))
        .ok_or_else(|| minijinja::Error::new(ErrorKind::InvalidOperation, "too long ago"))
}

/// A path as it goes out.
#[derive(Debug, Clone)]
pub struct RawPath(String);

impl std::str::FromStr for RawPath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !text.starts_with('/') {
            return Err(format!("a path begins with `/`: \"/{text}\""));
        }
        Ok(Self(text.to_owned()))
    }
}

/// Refuses a filled path that would not go out as it is written.
fn raw_path(path: &str) -> Result<(), String> {
    if let Some(c) = path.chars().find(|c| *c == '#' || !c.is_ascii_graphic()) {
        return Err(format!(
            "{c:?} cannot stand in a path as it goes out: write {}",
            percent_encoded(&c.to_string())
        ));
    }
    let url = Url::parse(&format!("http://homeserver{path}")).map_err(|error| error.to_string())?;
    let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
    let sent = format!("{}{query}", url.path());
    if sent == path {
        Ok(())
    } else {
        Err(format!("{path:?} would go out as {sent:?}: write it so if that is meant"))
    }
}

crate::text_values! { RawPath: "a path such as \"/_synapse/admin/v1/…\""; }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_know_moments_and_encode() {
        let at = "2026-11-23T00:00:00Z".parse().unwrap();
        let rendered = [
            "{{ ago_ms('30d') }}",
            "{{ ago_seconds('1h') }}",
            "{{ now_ms() }}",
            "{{ '#a/b:ü' | urlencode }}",
        ]
        .map(|template| render(template, at).unwrap());
        assert_eq!(rendered, ["1792800000000", "1795388400", "1795392000000", "%23a%2Fb%3A%C3%BC"]);
        insta::assert_snapshot!(render("{{ ago_ms('6mo') }}", at).unwrap_err(), @r#"the template "{{ ago_ms('6mo') }}" cannot be filled in: "6mo": months are not a unit here: write the days, "180d""#);
    }

    #[test]
    fn a_path_that_could_not_go_out_as_written_is_refused() {
        insta::assert_snapshot!(raw_path("/join/#room:hs").unwrap_err(), @"'#' cannot stand in a path as it goes out: write %23");
        insta::assert_snapshot!(raw_path("/a/../b").unwrap_err(), @r#""/a/../b" would go out as "/b": write it so if that is meant"#);
        insta::assert_snapshot!("_synapse".parse::<RawPath>().unwrap_err(), @r#"a path begins with `/`: "/_synapse""#);
        for path in ["//a//b/", "/a%2Fb%zz/!room:hs/@a:hs?x=1&y=%26+", "/a?"] {
            assert_eq!(raw_path(path), Ok(()));
        }
    }
}
