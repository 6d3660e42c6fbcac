//! `request`: sends one request to any endpoint, for tasks that have no kind of their own.

use chrono::TimeDelta;
use futures_util::future::BoxFuture;
use minijinja::{Environment, ErrorKind, UndefinedBehavior};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Method, Url};
use serde_json::Value;

use super::job::{Context, Job, Needs, PlanError, Undo};
use crate::plan::change::{Change, ChangeResult, Lane, Plan, Work};
use crate::plan::report::Action;
use crate::synapse::{self, Base, RawRequest, Version, Writer};
use crate::values::clock::Timestamp;
use crate::values::duration::HumanDuration;
use crate::values::schema::schema;
use crate::values::schema::{ConfigError, Key, NonEmpty, Table};
use crate::values::size::Size;
use crate::values::string_enum::string_enum;
use crate::values::text::format_number;

schema! {
    pub struct Keys, entries KeyEntries {
        /// The HTTP method.
        pub method: Verb,
        /// The path under the URL of the homeserver, written exactly as it is sent: with reserved characters percent-encoded (in a template, by `urlencode`).
        pub path: RawPath,
        /// The address to send it to: "homeserver" (`url`) or "media" (`media_url`).
        pub base: Where = "\"homeserver\"",
        /// Query parameters: a table of strings, numbers and booleans, all of which are sent as text.
        pub query: Option<Value>,
        /// The JSON body. A string that consists of a single expression is sent with the type of its value: `{{ ago_ms('90d') }}` as a number, `{{ ago_ms('90d') | string }}` as a string.
        pub body: Option<Value>,
        /// The HTTP statuses that count as success.
        pub expect: NonEmpty<u16> where "100" to "599" = "[200]",
        /// Whether the request may be sent again if it is unknown whether Synapse processed it.
        pub repeatable: bool = "false",
        /// Shows the values of query and body in log, history and dry run. Otherwise only their names and types are shown, because a value may be a secret.
        pub log_body: bool = "false",
        /// Whether the first 4 KiB of the response are kept in the history and shown by `run` and `runs show`; tokens and passwords in JSON are masked.
        pub keep_answer: bool = "true",
    }
}

string_enum! {
    pub enum Verb {
        Get = "GET",
        Post = "POST",
        Put = "PUT",
        Delete = "DELETE",
        Patch = "PATCH",
    }
}

string_enum! {
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
    const ABOUT: &'static str = "Sends one request to any Admin or Client-Server endpoint, with the access token of the homeserver. Strings in path, query and body are templates: \
        {{ ago_ms(\"30d\") }}, {{ ago_seconds(\"30d\") }}, {{ now_ms() }} and the filter urlencode. microglia does not know what the endpoint does, so a dry run only shows the request and sends nothing.";
    const KEYS: &'static [Key] = KeyEntries::KEYS;
    const ACTION: Action = Action::Request;
    const UNDO: Undo = Undo::Impossible("only who wrote the request knows what it changed");
    const COUNTS: bool = false;
    const NEEDS: Needs = Needs {
        synapse: Version(0, 0),
        clock: true,
        without_mas_client: None,
        plans_offline: true,
        media: false,
    };

    fn read(table: &Table<'_, '_>, now: Timestamp, errors: &mut Vec<ConfigError>) -> Option<Self> {
        let before = errors.len();
        let keys = KeyEntries::parse(table, errors);
        let (query, body) = (keys.query.value.as_ref(), keys.body.value.as_ref());
        let parameters = match query.and_then(Option::as_ref) {
            None => Some(true),
            Some(Value::Object(map)) => {
                Some(map.values().all(|value| !value.is_array() && !value.is_object()))
            }
            Some(_) => None,
        };
        if parameters != Some(true) {
            errors.push(ConfigError::new(
                keys.query.span.clone(),
                "expected a table of strings, numbers and booleans such as { before_ts = \"{{ ago_ms('30d') }}\" }; a parameter that occurs twice can be written in `path`",
            ));
        }
        // A template that cannot be rendered is reported when the configuration is read, not when the job runs.
        let path = keys.path.value.as_ref();
        for (span, rendered) in [
            (
                &keys.path.span,
                path.map(|path| render("path", &path.0, now).and_then(|path| check_path(&path))),
            ),
            (&keys.query.span, query.map(|query| rendered("query", query.as_ref(), now).map(drop))),
            (&keys.body.span, body.map(|body| rendered("body", body.as_ref(), now).map(drop))),
        ] {
            if let Some(Err(error)) = rendered {
                errors.push(ConfigError::new(span.clone(), error));
            }
        }
        let job = Self { keys: keys.complete()? };
        (errors.len() == before).then_some(job)
    }

    fn is_repeatable(&self) -> bool {
        self.keys.repeatable || self.keys.method == Verb::Get
    }

    async fn plan(&self, context: &Context<'_>, plan: &mut Plan) -> Result<(), PlanError> {
        let raw = self.raw_request(context.started_at).map_err(PlanError::Refused)?;
        plan.work = Work::Changes(vec![Box::new(Send {
            raw,
            detail_level: self.detail_level(),
            keep_answer: self.keys.keep_answer,
        })]);
        Ok(())
    }
}

impl Request {
    fn detail_level(&self) -> DetailLevel {
        if self.keys.log_body { DetailLevel::Values } else { DetailLevel::Types }
    }

    fn raw_request(&self, at: Timestamp) -> Result<RawRequest, String> {
        let query = match rendered("query", self.keys.query.as_ref(), at)? {
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
        let path = render("path", &self.keys.path.0, at)?;
        check_path(&path)?;
        Ok(RawRequest {
            method: self.keys.method.as_str().parse().unwrap_or(Method::GET),
            base: match self.keys.base {
                Where::Homeserver => Base::Homeserver,
                Where::Media => Base::Media,
            },
            path,
            query,
            body: rendered("body", self.keys.body.as_ref(), at)?,
            expect: self.keys.expect.to_vec(),
            repeatable: self.keys.repeatable,
        })
    }
}

#[derive(Debug)]
struct Send {
    raw: RawRequest,
    detail_level: DetailLevel,
    keep_answer: bool,
}

/// How much of query and body log, history and dry run show.
#[derive(Debug, Clone, Copy)]
enum DetailLevel {
    Types,
    Values,
}

impl Change for Send {
    fn action(&self) -> Action {
        Action::Request
    }

    fn target(&self) -> String {
        let RawRequest { method, path, query, body, .. } = &self.raw;
        let (path, own_query) = path.split_once('?').unwrap_or((path, ""));
        let own_query = own_query.split('&').filter(|parameter| !parameter.is_empty()).map(
            |parameter| match (self.detail_level, parameter.split_once('=')) {
                (DetailLevel::Types, Some((key, _))) => format!("{key}=…"),
                _ => parameter.to_owned(),
            },
        );
        let query = query.iter().map(|(key, value)| match self.detail_level {
            DetailLevel::Types => format!("{key}=…"),
            DetailLevel::Values => format!("{key}={value}"),
        });
        let query: Vec<String> = own_query.chain(query).collect();
        let query = if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) };
        let body = body.as_ref().map(|body| match self.detail_level {
            DetailLevel::Types => format!(" {}", types(body)),
            DetailLevel::Values => format!(" {body}"),
        });
        format!("{method} {path}{query}{}", body.unwrap_or_default())
    }

    fn lane(&self) -> Lane {
        let sets_ids =
            self.raw.body.as_ref().is_some_and(|body| body.get("external_ids").is_some());
        if sets_ids { Lane::ExternalIds } else { Lane::Free }
    }

    fn apply<'a>(
        &'a self,
        writer: &'a Writer,
        _before: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<ChangeResult, synapse::Error>> {
        Box::pin(async move {
            match writer.request(&self.raw).await {
                Err(error) if error.may_have_taken_effect() && !self.raw.repeatable => {
                    Err(error.not_repeatable())
                }
                response => response.map(|body| ChangeResult {
                    answer: kept_response(&body).filter(|_| self.keep_answer),
                    ..ChangeResult::items(1)
                }),
            }
        })
    }
}

/// In bytes.
const MAX_KEPT_RESPONSE: usize = 4096;
/// Keys of Synapse's responses whose values are secrets and must not be stored.
const SECRET_KEYS: &[&str] =
    &["access_token", "refresh_token", "login_token", "id_token", "password", "client_secret"];

/// Returns the part of a response that is kept, without secrets; `None` if it is empty.
fn kept_response(body: &[u8]) -> Option<String> {
    let masked = serde_json::from_slice(body)
        .ok()
        .and_then(|mut value| mask(&mut value).then(|| value.to_string()));
    let mut text = masked.unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
    if text.len() > MAX_KEPT_RESPONSE {
        text.truncate(text.floor_char_boundary(MAX_KEPT_RESPONSE - '…'.len_utf8()));
        text.push('…');
    }
    (!text.is_empty()).then_some(text)
}

/// Replaces secrets and returns whether there were any.
fn mask(value: &mut Value) -> bool {
    match value {
        Value::Object(map) => map.iter_mut().fold(false, |masked, (key, value)| {
            if SECRET_KEYS.contains(&key.as_str()) && !value.is_null() {
                *value = Value::String("***".to_owned());
                return true;
            }
            mask(value) || masked
        }),
        Value::Array(items) => items.iter_mut().map(mask).filter(|masked| *masked).count() > 0,
        _ => false,
    }
}

/// Returns a JSON value in which each scalar is replaced by its type.
fn types(value: &Value) -> String {
    match value {
        Value::Null => "<null>".to_owned(),
        Value::Bool(_) => "<boolean>".to_owned(),
        Value::Number(_) => "<number>".to_owned(),
        Value::String(_) => "<string>".to_owned(),
        Value::Array(items) => {
            format!("[{}]", items.iter().map(types).collect::<Vec<_>>().join(", "))
        }
        Value::Object(map) => {
            let entries: Vec<String> = map
                .iter()
                .map(|(key, value)| format!("{}: {}", Value::from(key.as_str()), types(value)))
                .collect();
            format!("{{{}}}", entries.join(", "))
        }
    }
}

/// Renders every string of a value. Errors name `name`, its place, and do not quote the string, which may be a secret.
fn rendered(name: &str, value: Option<&Value>, at: Timestamp) -> Result<Option<Value>, String> {
    fn render_value(name: &str, value: &Value, at: Timestamp) -> Result<Value, String> {
        Ok(match value {
            Value::String(text) => evaluate(name, text, at)?,
            Value::Array(items) => Value::Array(
                items
                    .iter()
                    .enumerate()
                    .map(|(index, item)| render_value(&format!("{name}[{index}]"), item, at))
                    .collect::<Result<_, _>>()?,
            ),
            Value::Object(map) => Value::Object(
                map.iter()
                    .map(|(key, item)| {
                        Ok((key.clone(), render_value(&format!("{name}.{key}"), item, at)?))
                    })
                    .collect::<Result<_, String>>()?,
            ),
            other => other.clone(),
        })
    }
    value.map(|value| render_value(name, value, at)).transpose()
}

/// Evaluates a template that is one expression to its value, and renders any other as text.
fn evaluate(name: &str, template: &str, at: Timestamp) -> Result<Value, String> {
    let environment = environment(at);
    // A text that does not compile has several expressions, or an error that `render` reports.
    let Some(expression) =
        only_expression(template).and_then(|text| environment.compile_expression(text).ok())
    else {
        return render(name, template, at).map(Value::String);
    };
    let value = expression.eval(()).map_err(|error| render_error(name, &error))?;
    if value.is_undefined() {
        return Err(render_error(name, &ErrorKind::UndefinedError.into()));
    }
    if f64::try_from(value.clone()).is_ok_and(|number| !number.is_finite()) {
        return Err(format!("the value of the template in `{name}` is not a number in JSON"));
    }
    let value = serde_json::to_value(&value)
        .map_err(|error| format!("the value of the template in `{name}` is not JSON: {error}"))?;
    if value.to_string().len() > MAX_RENDERED_BYTES {
        return Err(render_error(name, &ErrorKind::WriteFailure.into()));
    }
    Ok(value)
}

/// Returns the text between `{{` and `}}` if a template begins and ends with them.
fn only_expression(template: &str) -> Option<&str> {
    let inner = template.strip_prefix("{{")?.strip_suffix("}}")?;
    let inner = inner.strip_prefix(['-', '+']).unwrap_or(inner);
    Some(inner.strip_suffix(['-', '+']).unwrap_or(inner))
}

fn render(name: &str, template: &str, at: Timestamp) -> Result<String, String> {
    let mut output = BoundedBuffer(Vec::new());
    environment(at)
        .template_from_str(template)
        .and_then(|template| template.render_captured_to((), &mut output).map(drop))
        .map_err(|error| render_error(name, &error))?;
    String::from_utf8(output.0).map_err(|error| error.to_string())
}

fn render_error(name: &str, error: &minijinja::Error) -> String {
    let problem = match error.kind() {
        ErrorKind::OutOfFuel => {
            format!("it needs more than {} steps: shorten its loops", format_number(MAX_STEPS))
        }
        ErrorKind::WriteFailure => {
            format!("it produces more than {} of text", Size(MAX_RENDERED_BYTES as u64))
        }
        kind => error.detail().map_or_else(|| kind.to_string(), str::to_owned),
    };
    format!("the template in `{name}` cannot be rendered: {problem}")
}

/// Steps per template, which also limits its memory: a step is an instruction or 64 bytes.
const MAX_STEPS: u64 = 100_000;
/// Bytes of text per template.
const MAX_RENDERED_BYTES: usize = 1 << 20;

/// A buffer that accepts [`MAX_RENDERED_BYTES`].
struct BoundedBuffer(Vec<u8>);

impl std::io::Write for BoundedBuffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_RENDERED_BYTES {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn environment(at: Timestamp) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_fuel(Some(MAX_STEPS));
    environment.add_function("ago_ms", move |duration: String| {
        ago(at, &duration).map(|time| time.timestamp_millis())
    });
    environment.add_function("ago_seconds", move |duration: String| {
        ago(at, &duration).map(|time| time.timestamp())
    });
    environment.add_function("now_ms", move || at.timestamp_millis());
    // minijinja's own filter does not encode `/`, which a room id may contain.
    environment
        .add_filter("urlencode", |text: String| utf8_percent_encode(&text, RESERVED).to_string());
    environment
}

/// All but the unreserved characters of RFC 3986.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

fn ago(at: Timestamp, duration: &str) -> Result<Timestamp, minijinja::Error> {
    let duration: HumanDuration = duration
        .parse()
        .map_err(|error: String| minijinja::Error::new(ErrorKind::InvalidOperation, error))?;
    at.checked_sub_signed(duration.as_chrono().max(TimeDelta::zero()))
        .ok_or_else(|| minijinja::Error::new(ErrorKind::InvalidOperation, "too long ago"))
}

/// A path, exactly as it is sent.
#[derive(Debug, Clone)]
pub struct RawPath(String);

impl std::str::FromStr for RawPath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !text.starts_with('/') {
            return Err(format!("a path must start with `/`: \"/{text}\""));
        }
        Ok(Self(text.to_owned()))
    }
}

/// Rejects a rendered path that would not be sent exactly as it is written.
fn check_path(path: &str) -> Result<(), String> {
    if let Some(c) = path.chars().find(|c| *c == '#' || !c.is_ascii_graphic()) {
        return Err(format!(
            "{c:?} is not allowed in a path: write {}",
            utf8_percent_encode(&c.to_string(), RESERVED)
        ));
    }
    let url = Url::parse(&format!("http://homeserver{path}")).map_err(|error| error.to_string())?;
    let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
    let sent = format!("{}{query}", url.path());
    if sent == path {
        Ok(())
    } else {
        Err(format!("{path:?} would be sent as {sent:?}: write it like that if this is intended"))
    }
}

crate::values::schema::text_values! { RawPath: "a path such as \"/_synapse/admin/v1/…\""; }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_can_refer_to_times_and_encode() {
        let at = "2026-11-23T00:00:00Z".parse().unwrap();
        let rendered = [
            "{{ ago_ms('30d') }}",
            "{{ ago_seconds('1h') }}",
            "{{ now_ms() }}",
            "{{ '#a/b:ü' | urlencode }}",
        ]
        .map(|template| render("path", template, at).unwrap());
        assert_eq!(rendered, ["1792800000000", "1795388400", "1795392000000", "%23a%2Fb%3A%C3%BC"]);
        insta::assert_snapshot!(render("path", "{{ ago_ms('6mo') }}", at).unwrap_err(), @r#"the template in `path` cannot be rendered: invalid duration "6mo": months are not supported, use days: "180d""#);
    }

    #[test]
    fn the_kept_part_of_a_response_is_short_and_contains_no_secret() {
        assert_eq!(kept_response(b""), None);
        let as_it_is = "{ \"b\": 1,  \"a\": null }\n";
        assert_eq!(kept_response(as_it_is.as_bytes()).as_deref(), Some(as_it_is));
        let secret =
            br#"{"user_id": "@a:hs", "logins": [{"access_token": "syt_x"}], "password": null}"#;
        insta::assert_snapshot!(kept_response(secret).unwrap(), @r#"{"logins":[{"access_token":"***"}],"password":null,"user_id":"@a:hs"}"#);
        let long = kept_response("ü".repeat(MAX_KEPT_RESPONSE).as_bytes()).unwrap();
        assert_eq!((long.len() <= MAX_KEPT_RESPONSE, long.chars().last()), (true, Some('…')));
        assert_eq!(kept_response(b"\xff\xfe").as_deref(), Some("\u{fffd}\u{fffd}"));
    }

    #[test]
    fn a_path_that_would_not_be_sent_as_written_is_rejected() {
        insta::assert_snapshot!(check_path("/join/#room:hs").unwrap_err(), @"'#' is not allowed in a path: write %23");
        insta::assert_snapshot!(check_path("/a/../b").unwrap_err(), @r#""/a/../b" would be sent as "/b": write it like that if this is intended"#);
        insta::assert_snapshot!("_synapse".parse::<RawPath>().unwrap_err(), @r#"a path must start with `/`: "/_synapse""#);
        for path in ["//a//b/", "/a%2Fb%zz/!room:hs/@a:hs?x=1&y=%26+", "/a?"] {
            assert_eq!(check_path(path), Ok(()));
        }
    }
}
