//! The page for people: files embedded in the binary, and the headers they go out with.
//!
//! `GET /` and `HEAD /` are `index.html`; the other files are under `/page/`: `page.css`, `theme.js`, and `page.js` with the
//! modules it imports. All links are relative, so the page also works behind a proxy that adds a prefix. What the
//! HTTP side has to do: ask [`asset`] for the path; answer with the body, its content type, its `ETag` and all of
//! [`HEADERS`]; answer 304 without a body where `If-None-Match` names the tag. The page needs no key; it asks people
//! for one when `/v1/models` or `/v1/chat/completions` answers 401. It reads `error.message` and `Retry-After` of every
//! other refusal.
//!
//! The page has no inline script or style and builds its nodes one by one, so the policy forbids everything else: what
//! a model writes cannot become code, and nothing is fetched from or sent to another origin.

/// What a browser may do with the page.
pub const CONTENT_SECURITY_POLICY: &str = include_str!("../page/policy.txt").trim_ascii_end();

/// The headers of every file of the page, beside its content type and `ETag`. `no-cache`: keep it, but ask each time
/// whether it is still the same, so that a new server shows its own page.
pub const HEADERS: [(&str, &str); 4] = [
    ("content-security-policy", CONTENT_SECURITY_POLICY),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cache-control", "no-cache"),
];

/// A file of the page.
#[derive(Debug, PartialEq, Eq)]
pub struct Asset {
    /// The bytes; UTF-8.
    pub body: &'static str,
    /// The media type.
    pub content_type: &'static str,
    etag: [u8; 18],
}

impl Asset {
    const fn new(body: &'static str, content_type: &'static str) -> Self {
        Self { body, content_type, etag: etag(body.as_bytes()) }
    }

    /// The strong entity tag, quotes included: the same for the same contents, in every build.
    pub fn etag(&self) -> &str {
        str::from_utf8(&self.etag).expect("quotes and hexadecimal digits are ASCII")
    }
}

const SCRIPT: &str = "text/javascript; charset=utf-8";
static FILES: [(&str, Asset); 10] = [
    ("/", Asset::new(include_str!("../page/index.html"), "text/html; charset=utf-8")),
    ("/page/page.css", Asset::new(include_str!("../page/page.css"), "text/css; charset=utf-8")),
    ("/page/theme.js", Asset::new(include_str!("../page/theme.js"), SCRIPT)),
    ("/page/settings.js", Asset::new(include_str!("../page/settings.js"), SCRIPT)),
    ("/page/list.js", Asset::new(include_str!("../page/list.js"), SCRIPT)),
    ("/page/key.js", Asset::new(include_str!("../page/key.js"), SCRIPT)),
    ("/page/page.js", Asset::new(include_str!("../page/page.js"), SCRIPT)),
    ("/page/markdown.js", Asset::new(include_str!("../page/markdown.js"), SCRIPT)),
    ("/page/store.js", Asset::new(include_str!("../page/store.js"), SCRIPT)),
    ("/page/stream.js", Asset::new(include_str!("../page/stream.js"), SCRIPT)),
];

/// The file at the path of a request: exactly the path, without a query.
pub fn asset(path: &str) -> Option<&'static Asset> {
    FILES.iter().find(|(known, _)| *known == path).map(|(_, asset)| asset)
}

/// FNV-1a of 64 bits in hexadecimal digits. A tag tells versions of one file apart; nobody gains by forging one.
const fn etag(contents: &[u8]) -> [u8; 18] {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let mut i = 0;
    while i < contents.len() {
        hash = (hash ^ contents[i] as u64).wrapping_mul(0x0000_0100_0000_01b3);
        i += 1;
    }
    let mut tag = [b'"'; 18];
    let mut digit = 0;
    while digit < 16 {
        tag[1 + digit] = b"0123456789abcdef"[(hash >> (60 - 4 * digit)) as usize & 15];
        digit += 1;
    }
    tag
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_that_the_page_asks_for_is_there() {
        let html = asset("/").unwrap().body;
        let links = html.split(['"', '\'']).filter(|text| text.starts_with("page/")).map(|text| format!("/{text}"));
        let imports = FILES.iter().flat_map(|(_, file)| file.body.lines()).filter_map(|line| {
            let name = line.strip_prefix("import ")?.rsplit_once("\"./")?.1.strip_suffix("\";")?;
            Some(format!("/page/{name}"))
        });
        let mut asked: Vec<_> = links.chain(imports).collect();
        asked.sort();
        asked.dedup();
        let mut held: Vec<_> = FILES.iter().map(|(path, _)| *path).filter(|path| *path != "/").collect();
        held.sort_unstable();
        assert_eq!(asked, held);
    }

    #[test]
    fn only_exact_paths_are_found() {
        for path in
            ["", "/index.html", "/page", "/page/", "/page/page.rs", "/page/../page/page.js", "//", "/page/page.js/"]
        {
            assert_eq!(asset(path), None, "{path:?}");
        }
    }

    #[test]
    fn types_are_those_that_browsers_insist_on() {
        let kind = |path| asset(path).unwrap().content_type;
        assert_eq!(kind("/"), "text/html; charset=utf-8");
        assert_eq!(kind("/page/page.css"), "text/css; charset=utf-8");
        assert_eq!(kind("/page/stream.js"), "text/javascript; charset=utf-8");
    }

    #[test]
    fn tags_follow_the_contents() {
        // The published vectors of FNV-1a.
        assert_eq!(&etag(b""), b"\"cbf29ce484222325\"");
        assert_eq!(&etag(b"a"), b"\"af63dc4c8601ec8c\"");
        assert_eq!(&etag(b"foobar"), b"\"85944171f73967e8\"");
        for (path, file) in &FILES {
            assert_eq!(file.etag().as_bytes(), etag(file.body.as_bytes()), "{path}");
            assert!(FILES.iter().all(|(other, with)| other == path || with.etag() != file.etag()), "{path}");
        }
    }

    #[test]
    fn the_policy_allows_nothing_inline() {
        assert!(CONTENT_SECURITY_POLICY.starts_with("default-src 'none'; script-src 'self'; style-src 'self'"));
        assert!(!CONTENT_SECURITY_POLICY.contains("unsafe") && !CONTENT_SECURITY_POLICY.contains(['\n', '\r']));
        let html = asset("/").unwrap().body;
        for inline in ["<style", " style=", "<script>", " onclick=", "javascript:", "//cdn"] {
            assert!(!html.contains(inline), "{inline}");
        }
    }
}
