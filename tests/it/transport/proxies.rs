//! What is reported when a proxy responds in place of Synapse.

use super::{ONCE, OWN, message_after};
use crate::fake::{Fake, Fault, TOKEN, Trouble};
use crate::program::Program;

fn page(status: u16, body: &str) -> Trouble {
    Trouble::Answer { status, headers: Vec::new(), body: body.to_owned() }
}

#[tokio::test]
async fn the_error_for_a_page_of_a_proxy_shows_its_title_and_what_to_check() {
    let long = format!(
        "<HTML><Title lang=en>\r\n Gateway\x1b[31m  &amp; <b>time</b>-out {}</TITLE><body>hidden",
        "x".repeat(200)
    );
    let nos = [
        page(502, "<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"),
        page(503, "upstream connect error or disconnect/reset before headers"),
        page(504, &long),
        page(
            404,
            "<html><head><style>p { color: red }</style></head><body><h1>Not here</h1><p>Sorry</p></body></html>",
        ),
        page(404, ""),
        page(
            200,
            "\n<html><head><title>Sign in</title></head><body><script>hidden</script></body></html>",
        ),
    ];
    let mut all = String::new();
    for trouble in nos {
        all.push_str(&message_after(OWN, trouble).await.0);
        all.push('\n');
    }
    insta::assert_snapshot!(all, @"
    failed: GET /_synapse/admin/v2/users/@microglia:fake.test: 502 from a server that is not Synapse: 502 Bad Gateway. The proxy cannot reach Synapse: check that Synapse is running and that the upstream address of the proxy is correct, or set `url` to Synapse's own listener
    failed: GET /_synapse/admin/v2/users/@microglia:fake.test: 503 from a server that is not Synapse: upstream connect error or disconnect/reset before headers. The proxy has no Synapse to forward the request to: check that Synapse is running and that the proxy has not taken it out of service, or set `url` to Synapse's own listener
    failed: GET /_synapse/admin/v2/users/@microglia:fake.test: 504 from a server that is not Synapse: Gateway [31m &amp; time -out xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…. The proxy timed out, and Synapse may still be processing the request: increase the read timeout of the proxy, or set `url` to Synapse's own listener
    failed: GET /_synapse/admin/v2/users/@microglia:fake.test: 404 from a server that is not Synapse: Not here Sorry. A proxy responded, and most of them block /_synapse/admin: set `url` to Synapse's own listener, such as http://127.0.0.1:8008
    failed: GET /_synapse/admin/v2/users/@microglia:fake.test: 404 with an empty body, which did not come from Synapse. A proxy responded, and most of them block /_synapse/admin: set `url` to Synapse's own listener, such as http://127.0.0.1:8008
    failed: GET /_synapse/admin/v2/users/@microglia:fake.test: cannot decode the response (expected value at line 2 column 1): Sign in
    ");
}

#[tokio::test]
async fn the_error_for_a_proxy_that_times_out_on_a_purge_names_media_url() {
    let fake = Fake::start();
    let purge = "/_synapse/admin/v1/purge_media_cache";
    fake.fault(Fault::new("POST", purge, Trouble::Proxy(504)).always());
    let job = "[jobs.cache]\nkind = \"purge-remote-media\"\nolder_than = \"30d\"\n";
    let program = Program::new(&fake.url(), TOKEN, &format!("{job}{ONCE}"));
    let report = program.apply("cache").await;
    insta::assert_snapshot!(report["message"].as_str().unwrap().split("; ").next().unwrap(), @"POST /_synapse/admin/v1/purge_media_cache: 504 from a server that is not Synapse: 504 Gateway Timeout. The proxy timed out, and Synapse may still be processing the request: increase the read timeout of the proxy, or set `media_url` to Synapse's own listener");
}
