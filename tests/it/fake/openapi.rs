//! The OpenAPI description of MAS's Admin API: what a request may contain, and what a response must look like.

use std::sync::OnceLock;

use serde_json::{Map, Value};

const DOCUMENT: &str = include_str!("mas-admin-api.openapi.json");

/// As MAS 1.22 serves it at `/api/spec.json`.
pub fn document() -> &'static Value {
    static PARSED: OnceLock<Value> = OnceLock::new();
    PARSED.get_or_init(|| serde_json::from_str(DOCUMENT).expect("the OpenAPI file is JSON"))
}

/// An operation of the document, found by method and path.
pub struct Operation {
    operation: &'static Value,
}

impl Operation {
    /// `path` is the path as sent, or a template with `{}` for each of its variables.
    pub fn find(method: &str, path: &str) -> Option<Self> {
        let paths = document()["paths"].as_object()?;
        // A fixed segment is closer than a variable one: `by-username` is not an id.
        let mut found: Vec<(&String, &Value)> =
            paths.iter().filter(|(template, _)| is_instance(path, template)).collect();
        found.sort_by_key(|(template, _)| template.matches('{').count());
        let methods = found.first()?.1;
        Some(Self { operation: methods.get(method.to_lowercase())? })
    }

    /// What in a request the document does not know.
    pub fn unknown_in_request(&self, query: &[(String, String)], body: &str) -> Vec<String> {
        let parameters = self.operation["parameters"].as_array().map_or(&[][..], Vec::as_slice);
        let mut problems = Vec::new();
        for (name, value) in query {
            let known = parameters
                .iter()
                .find(|known| known["in"] == "query" && known["name"] == name.as_str());
            match known {
                None => problems.push(format!("the parameter {name} does not exist")),
                Some(known) => {
                    let schema = resolved(&known["schema"]);
                    let typed = match schema["type"].as_str() {
                        Some("integer") => value.parse::<u64>().map_or(Value::Null, Value::from),
                        _ => Value::from(value.as_str()),
                    };
                    check(schema, &typed, name, &mut problems);
                }
            }
        }
        let schema = &self.operation["requestBody"]["content"]["application/json"]["schema"];
        if body.is_empty() {
            if self.operation["requestBody"]["required"] == true {
                problems.push("there is no body".to_owned());
            }
        } else if schema.is_null() {
            problems.push("there is a body".to_owned());
        } else {
            match serde_json::from_str(body) {
                Ok(body) => check(schema, &body, "body", &mut problems),
                Err(error) => problems.push(format!("the body is not JSON: {error}")),
            }
        }
        problems
    }

    /// What in a JSON response differs from the document; statuses that it leaves out have the form of an error.
    pub fn problems_in_response(&self, status: u16, body: &Value) -> Vec<String> {
        let responses = &self.operation["responses"][status.to_string()];
        let mut problems = Vec::new();
        match responses["content"]["application/json"]["schema"].as_object() {
            Some(_) => check(
                &responses["content"]["application/json"]["schema"],
                body,
                "response",
                &mut problems,
            ),
            None if status >= 400 => {
                let schema = &document()["components"]["schemas"]["ErrorResponse"];
                check(schema, body, "response", &mut problems);
            }
            None => problems.push(format!("the status {status} has no JSON")),
        }
        problems
    }
}

fn is_instance(path: &str, template: &str) -> bool {
    let (mut segments, mut known) = (path.split('/'), template.split('/'));
    loop {
        match (segments.next(), known.next()) {
            (None, None) => return true,
            (Some(segment), Some(known)) if segment == known || known.starts_with('{') => {}
            _ => return false,
        }
    }
}

fn resolved(schema: &'static Value) -> &'static Value {
    match schema["$ref"].as_str() {
        Some(reference) => {
            let name = reference.rsplit('/').next().unwrap_or_default();
            resolved(&document()["components"]["schemas"][name])
        }
        None => schema,
    }
}

/// Adds what is wrong with a value: the part of JSON Schema that the document uses, and no field that it leaves out.
fn check(schema: &'static Value, value: &Value, at: &str, problems: &mut Vec<String>) {
    let Some(keywords) = resolved(schema).as_object() else {
        problems.push(format!("{at}: not a schema"));
        return;
    };
    for (keyword, operand) in keywords {
        check_keyword(keywords, (keyword, operand), value, at, problems);
    }
}

fn check_keyword(
    keywords: &'static Map<String, Value>,
    (keyword, operand): (&str, &'static Value),
    value: &Value,
    at: &str,
    problems: &mut Vec<String>,
) {
    let mut wrong = |what: &str| problems.push(format!("{at}: {what}: {value}"));
    let alternatives = || operand.as_array().map_or(&[][..], Vec::as_slice);
    match keyword {
        "type" => {
            let is = |name: &Value| match name.as_str() {
                Some("object") => value.is_object(),
                Some("array") => value.is_array(),
                Some("string") => value.is_string(),
                Some("boolean") => value.is_boolean(),
                Some("integer") => value.is_u64() || value.is_i64(),
                Some("null") => value.is_null(),
                _ => false,
            };
            let fits = operand.as_array().map_or_else(|| is(operand), |all| all.iter().any(is));
            if !fits {
                wrong(&format!("is not of type {operand}"));
            }
        }
        "properties" => {
            for (name, field) in value.as_object().into_iter().flatten() {
                match operand.get(name) {
                    Some(schema) => check(schema, field, &format!("{at}.{name}"), problems),
                    None => problems.push(format!("{at}: the field {name} does not exist")),
                }
            }
        }
        "required" => {
            for name in alternatives().iter().filter_map(Value::as_str) {
                if value.is_object() && value.get(name).is_none() {
                    problems.push(format!("{at}: the field {name} is missing"));
                }
            }
        }
        "items" => {
            for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                check(operand, item, &format!("{at}[{index}]"), problems);
            }
        }
        "allOf" => alternatives().iter().for_each(|schema| check(schema, value, at, problems)),
        "anyOf" | "oneOf" => {
            let fits = |schema: &'static Value| {
                let mut own = Vec::new();
                check(schema, value, at, &mut own);
                own.is_empty()
            };
            if !alternatives().iter().any(fits) {
                wrong("fits no alternative");
            }
        }
        "enum" => {
            if !alternatives().contains(value) {
                wrong(&format!("is none of {operand}"));
            }
        }
        "pattern" => {
            let (what, is_it): (_, fn(&str) -> bool) = match operand.as_str() {
                Some("^[0123456789ABCDEFGHJKMNPQRSTVWXYZ]{26}$") => ("a ULID", |text| {
                    text.len() == 26
                        && text
                            .bytes()
                            .all(|byte| b"0123456789ABCDEFGHJKMNPQRSTVWXYZ".contains(&byte))
                }),
                Some("^[A-Za-z0-9._~!$&'()*+,;=:&/-]+$") => ("a device", |text| {
                    let is_allowed =
                        |c: char| c.is_ascii_alphanumeric() || "._~!$&'()*+,;=:&/-".contains(c);
                    !text.is_empty() && text.chars().all(is_allowed)
                }),
                _ => panic!("another pattern: {operand}"),
            };
            if value.as_str().is_some_and(|text| !is_it(text)) {
                wrong(&format!("is not {what}"));
            }
        }
        "format" if operand == "date-time" => {
            let is_date = |text: &str| chrono::DateTime::parse_from_rfc3339(text).is_ok();
            if value.as_str().is_some_and(|text| !is_date(text)) {
                wrong("is not a date");
            }
        }
        "minimum" => {
            if value.as_i64().is_some_and(|number| number < operand.as_i64().unwrap_or(i64::MIN)) {
                wrong("is too small");
            }
        }
        "maximum" => {
            if value.as_i64().is_some_and(|number| number > operand.as_i64().unwrap_or(i64::MAX)) {
                wrong("is too large");
            }
        }
        "$ref" | "format" | "description" | "title" | "example" | "default" | "deprecated" => {}
        _ => panic!("{keyword} is not implemented, in {keywords:?}"),
    }
}
