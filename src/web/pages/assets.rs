//! The files that pages load, which are part of the program.

use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::values::fingerprint::Fingerprint;

const CSS: &str = include_str!("static/page.css");
const JS: &str = include_str!("static/page.js");
const ICON: &str = include_str!("static/icon.svg");

/// Part of the addresses of the files, so that browsers keep each version and never use an old one.
pub(super) static VERSION: LazyLock<String> = LazyLock::new(|| {
    Fingerprint::of_bytes([CSS, JS, ICON].concat().as_bytes()).to_string()[..8].to_owned()
});

pub(super) async fn serve(Path(file): Path<String>) -> Response {
    let (kind, text) = match file.as_str() {
        "page.css" => ("text/css; charset=utf-8", CSS),
        "page.js" => ("text/javascript; charset=utf-8", JS),
        "icon.svg" => ("image/svg+xml", ICON),
        _ => return (StatusCode::NOT_FOUND, "there is no such file\n").into_response(),
    };
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "public, max-age=31536000, immutable"),
    ];
    (headers, text).into_response()
}
