//! Chromium, driven through chromedriver.
//!
//! By the few requests of the `WebDriver` protocol that these tests need: the crates for it need second versions of a dozen
//! others.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use reqwest::{Client, Method};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

/// How long a page may take to show something: joins take a second each where the machine is busy.
const PATIENCE: Duration = Duration::from_mins(3);
/// The key under which the protocol names an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// Without the flags about networking Chromium looks for its maker's servers.
const FLAGS: [&str; 10] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
];

/// A browser with a profile of its own; it ends with the test.
pub struct Browser {
    client: Client,
    /// The URL of the session.
    session: String,
    /// Where the pages are.
    base: String,
    driver: Child,
    _profile: TempDir,
}

/// Whether pages may run scripts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scripts {
    On,
    Off,
}

#[derive(Clone, Copy)]
pub struct Look {
    pub scheme: &'static str,
    pub name: &'static str,
    pub width: u32,
    pub height: u32,
}

impl Browser {
    pub async fn open(address: &str, scripts: Scripts) -> Self {
        let profile = tempfile::tempdir().unwrap();
        // The driver names its port in a file, so that nothing has to read its output.
        let log = profile.path().join("driver.log");
        let driver = Command::new("chromedriver")
            .args(["--port=0"])
            .stdout(std::fs::File::create(&log).unwrap())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver is not installed: apt-get install chromium chromium-driver");
        let port = until("chromedriver", async || {
            let text = std::fs::read_to_string(&log).unwrap();
            let (_, rest) = text.split_once("successfully on port ")?;
            let (port, _) = rest.split_once('.')?;
            Some(port.to_owned())
        })
        .await;
        let client = client();
        let root = format!("http://127.0.0.1:{port}");
        let directory = format!("--user-data-dir={}", profile.path().join("profile").display());
        let flags: Vec<&str> = FLAGS.iter().copied().chain([directory.as_str()]).collect();
        let options = json!({ "binary": "/usr/bin/chromium", "args": flags });
        let wanted =
            json!({ "capabilities": { "alwaysMatch": { "goog:chromeOptions": options } } });
        let opened = call(&client, Method::POST, &format!("{root}/session"), Some(wanted)).await;
        let id = opened.unwrap()["sessionId"].as_str().unwrap().to_owned();
        let browser = Self {
            client,
            session: format!("{root}/session/{id}"),
            base: format!("http://{address}"),
            driver,
            _profile: profile,
        };
        if scripts == Scripts::Off {
            browser.command("Emulation.setScriptExecutionDisabled", json!({ "value": true })).await;
        }
        browser
    }

    async fn try_call(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Value, String> {
        call(&self.client, method, &format!("{}{path}", self.session), body).await
    }

    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Value {
        self.try_call(method, path, body).await.unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// A command of the `DevTools` protocol.
    async fn command(&self, name: &str, parameters: Value) -> Value {
        let body = json!({ "cmd": name, "params": parameters });
        self.call(Method::POST, "/goog/cdp/execute", Some(body)).await
    }

    pub async fn go(&self, path: &str) {
        let url = format!("{}{path}", self.base);
        self.call(Method::POST, "/url", Some(json!({ "url": url }))).await;
    }

    /// The path and query of the page.
    pub async fn path(&self) -> String {
        let url = self.call(Method::GET, "/url", None).await;
        url.as_str().unwrap().replacen(&self.base, "", 1)
    }

    async fn element(&self, using: &str, value: &str) -> String {
        until(value, async || {
            let body = json!({ "using": using, "value": value });
            let found = self.try_call(Method::POST, "/element", Some(body)).await.ok()?;
            Some(found[ELEMENT].as_str()?.to_owned())
        })
        .await
    }

    /// Clicks the link or button with this text.
    pub async fn click(&self, text: &str) {
        let path = format!(
            "//a[starts-with(normalize-space(), '{text}')] | //button[normalize-space()='{text}']"
        );
        let element = self.element("xpath", &path).await;
        self.call(Method::POST, &format!("/element/{element}/click"), Some(json!({}))).await;
    }

    pub async fn fill(&self, css: &str, text: &str) {
        let element = self.element("css selector", css).await;
        let body = json!({ "text": text });
        self.call(Method::POST, &format!("/element/{element}/value"), Some(body)).await;
    }

    /// What a person reads there; `None` while it is not there.
    pub async fn text(&self, css: &str) -> Option<String> {
        let body = json!({ "using": "css selector", "value": css });
        let found = self.try_call(Method::POST, "/element", Some(body)).await.ok()?;
        let element = found[ELEMENT].as_str()?;
        let text =
            self.try_call(Method::GET, &format!("/element/{element}/text"), None).await.ok()?;
        text.as_str().map(str::to_owned)
    }

    /// Waits, without loading the page again, until it shows this text.
    pub async fn shows(&self, css: &str, text: &str) {
        let end = Instant::now() + PATIENCE;
        loop {
            let shown = self.text(css).await;
            if shown.as_ref().is_some_and(|shown| shown.contains(text)) {
                return;
            }
            assert!(Instant::now() < end, "{css} does not show {text:?}, but {shown:?}");
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// As [`shows`](Self::shows), for pages without scripts: follows the link that they offer instead.
    pub async fn shows_after_refresh(&self, css: &str, text: &str) {
        let end = Instant::now() + PATIENCE;
        loop {
            let shown = self.text(css).await;
            if shown.as_ref().is_some_and(|shown| shown.contains(text)) {
                return;
            }
            assert!(Instant::now() < end, "{css} does not show {text:?}, but {shown:?}");
            self.click("Refresh").await;
        }
    }

    pub async fn look(&self, look: Look) {
        let features = json!([{ "name": "prefers-color-scheme", "value": look.scheme }]);
        self.command("Emulation.setEmulatedMedia", json!({ "features": features })).await;
        let size = json!({ "width": look.width, "height": look.height, "deviceScaleFactor": 1, "mobile": false });
        self.command("Emulation.setDeviceMetricsOverride", size).await;
    }

    pub async fn script(&self, script: &str) -> Value {
        let body = json!({ "script": script, "args": [] });
        self.call(Method::POST, "/execute/sync", Some(body)).await
    }

    async fn script_with_callback(&self, script: &str) -> Value {
        let body = json!({ "script": script, "args": [] });
        self.call(Method::POST, "/execute/async", Some(body)).await
    }

    /// A picture of the whole page, however long it is.
    pub async fn screenshot(&self, file: &Path) {
        let size = self.command("Page.getLayoutMetrics", json!({})).await["cssContentSize"].clone();
        let clip =
            json!({ "x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1 });
        let picture = json!({ "captureBeyondViewport": true, "clip": clip });
        let taken = self.command("Page.captureScreenshot", picture).await;
        std::fs::write(file, decoded(taken["data"].as_str().unwrap())).unwrap();
    }

    /// What axe-core finds on the page.
    pub async fn accessibility_problems(&self) -> Vec<String> {
        self.script(&axe()).await;
        let run = "const done = arguments[0];
            axe.run(document, { resultTypes: ['violations'] }).then((result) => done(result.violations.map((found) =>
                found.id + ': ' + found.nodes.map((node) => node.target.join(' ') + ' ' + node.failureSummary).join(' | '))));";
        let found = self.script_with_callback(run).await;
        found.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
    }

    /// Whether the page is wider than the window.
    pub async fn overflows(&self) -> bool {
        let wider =
            "return document.documentElement.scrollWidth > document.documentElement.clientWidth";
        self.script(wider).await == true
    }

    pub async fn close(self) {
        self.call(Method::DELETE, "", None).await;
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

fn client() -> Client {
    Client::builder().no_proxy().timeout(Duration::from_mins(2)).build().unwrap()
}

#[expect(clippy::disallowed_methods, reason = "the browser stands beside the program under test")]
async fn call(
    client: &Client,
    method: Method,
    url: &str,
    body: Option<Value>,
) -> Result<Value, String> {
    let request = client.request(method, url);
    let request = body.iter().fold(request, reqwest::RequestBuilder::json);
    let response = request.send().await.map_err(|error| error.to_string())?;
    let is_success = response.status().is_success();
    let answer: Value = response.json().await.map_err(|error| error.to_string())?;
    if is_success { Ok(answer["value"].clone()) } else { Err(answer["value"].to_string()) }
}

async fn until<T>(what: &str, look: impl AsyncFn() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < end, "{what} is not there");
        sleep(Duration::from_millis(100)).await;
    }
}

/// Installed once, from the npm registry.
fn axe() -> String {
    let directory = target().join("axe");
    let file = directory.join("node_modules/axe-core/axe.min.js");
    if !file.exists() {
        std::fs::create_dir_all(&directory).unwrap();
        let installed = Command::new("npm")
            .args(["install", "--no-save", "--no-audit", "--no-fund", "axe-core@4.14.1"])
            .current_dir(&directory)
            .status()
            .expect("npm is not installed");
        assert!(installed.success());
    }
    std::fs::read_to_string(file).unwrap()
}

pub fn target() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target")
}

/// Base64 with the usual alphabet.
fn decoded(text: &str) -> Vec<u8> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bytes, mut bits, mut count) = (Vec::with_capacity(text.len() / 4 * 3), 0_u32, 0);
    for byte in text.bytes().filter(|byte| *byte != b'=') {
        let value = ALPHABET.iter().position(|known| *known == byte).unwrap();
        bits = bits << 6 | u32::try_from(value).unwrap();
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from((bits >> count) & 0xff).unwrap());
        }
    }
    bytes
}
