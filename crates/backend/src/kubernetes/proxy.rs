//! Through which proxy the API server is asked.
//!
//! One that the kubeconfig names is used whatever else is said, as kubectl does. `HTTPS_PROXY` is for servers that `NO_PROXY` does
//! not name; its rules are curl's: names, with all below them, addresses, ranges of addresses, `*`.

use http::Uri;
use hyper_util::client::proxy::matcher::Matcher;
use kube::config::Kubeconfig;

use super::error::ApiError;

/// The proxy that a kubeconfig names for its current context.
pub fn stated(file: &Kubeconfig) -> Option<&str> {
    let current = file.current_context.as_deref()?;
    let context = file.contexts.iter().find(|context| context.name == current)?;
    let wanted = &context.context.as_ref()?.cluster;
    let cluster = file.clusters.iter().find(|cluster| cluster.name == *wanted)?;
    let url = cluster.cluster.as_ref()?.proxy_url.as_deref();
    url.filter(|url| !url.is_empty())
}

/// The proxy for a server: what is stated, else what the environment says.
///
/// # Errors
/// [`ApiError::Config`] if it is no URL.
pub fn of(server: &Uri, stated: Option<&str>, env: &dyn Fn(&str) -> Option<String>) -> Result<Option<Uri>, ApiError> {
    let set = |name: &str| env(name).filter(|value| !value.is_empty());
    let (name, url) = match (stated, set("HTTPS_PROXY").or_else(|| set("https_proxy"))) {
        (Some(url), _) => ("proxy-url of the kubeconfig", url.to_owned()),
        (None, Some(url)) => ("HTTPS_PROXY", url),
        (None, None) => return Ok(None),
    };
    let url: Uri = url
        .parse()
        .map_err(|error| ApiError::Config(format!("{name} is no URL ({error}), such as http://proxy:3128")))?;
    let except = set("NO_PROXY").or_else(|| set("no_proxy")).unwrap_or_default();
    // What it would be for, with any proxy.
    let all = Matcher::builder().all("http://proxy").no(except).build();
    Ok((stated.is_some() || all.intercept(server).is_some()).then_some(url))
}

/// Whether it has a password.
pub fn has_password(url: &Uri) -> bool {
    url.authority()
        .is_some_and(|authority| authority.as_str().contains('@'))
}

/// A proxy without what only it should know.
pub fn shown(url: &Uri) -> String {
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!(
        "{}://{}{port}",
        url.scheme_str().unwrap_or("http"),
        url.host().unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_shown_without_its_password() {
        let check = |url: &str, expected: &str, password: bool| {
            let url: Uri = url.parse().expect("a URL");
            assert_eq!((shown(&url).as_str(), has_password(&url)), (expected, password));
        };
        check("http://proxy:3128", "http://proxy:3128", false);
        check("http://me:secret@proxy:3128/", "http://proxy:3128", true);
        check("https://[fd00::1]", "https://[fd00::1]", false);
    }

    #[test]
    fn no_proxy_names_servers_not_proxies() {
        let check = |server: &str, stated: Option<&str>, env: &[(&str, &str)], expected: &str| {
            let get = |name: &str| {
                env.iter()
                    .find(|(key, _)| *key == name)
                    .map(|(_, value)| value.to_string())
            };
            let said = match of(&server.parse().expect("a URL"), stated, &get) {
                Ok(None) => "direct".to_owned(),
                Ok(Some(url)) => shown(&url),
                Err(error) => error.to_string(),
            };
            assert!(said.contains(expected), "{server} {stated:?} {env:?}: {said}");
        };
        let proxy = ("HTTPS_PROXY", "http://10.0.0.1:3128");
        let (by_name, by_address) = ("https://api.example.com:6443", "https://10.210.0.10:6443");
        check(by_name, None, &[], "direct");
        check(by_name, None, &[proxy], "http://10.0.0.1:3128");
        check(by_name, None, &[("https_proxy", "http://lower:1")], "http://lower:1");
        check(
            by_name,
            None,
            &[("HTTPS_PROXY", ""), ("https_proxy", "http://lower:1")],
            "http://lower:1",
        );
        for except in ["example.com", ".example.com", "a, api.example.com,", "*"] {
            check(by_name, None, &[proxy, ("NO_PROXY", except)], "direct");
        }
        for except in ["10.210.0.10", "10.210.0.0/16", "localhost,10.0.0.0/8"] {
            check(by_address, None, &[proxy, ("no_proxy", except)], "direct");
        }
        for except in ["", "10.0.0.1", "10.0.0.0/24", "other.example.com", "ample.com"] {
            check(by_address, None, &[proxy, ("NO_PROXY", except)], "http://10.0.0.1:3128");
            check(by_name, None, &[proxy, ("NO_PROXY", except)], "http://10.0.0.1:3128");
        }
        check(
            by_name,
            Some("http://stated:1"),
            &[proxy, ("NO_PROXY", "*")],
            "http://stated:1",
        );
        check(by_name, None, &[("HTTPS_PROXY", "http://a b")], "HTTPS_PROXY is no URL");
    }
}
