package idemhttp

import (
	"cmp"
	"mime"
	"net/http"
	"strings"

	"github.com/pgidem/idempotency"
)

// fingerprint is what a request asks for: its method and target, the values of
// selected header fields, and its body. The first part is the version of these
// rules: a request that was recorded under other rules would be another one.
func fingerprint(r *http.Request, body []byte, fields []string) idempotency.Fingerprint {
	parts := [][]byte{[]byte("idemhttp/1"), []byte(r.Method), []byte(r.URL.EscapedPath()), []byte(r.URL.RawQuery)}
	for _, name := range fields {
		parts = append(parts, []byte(strings.ToLower(name)), []byte(normalField(name, r.Header.Values(name))))
	}
	kind, content := "bytes", body
	if isJSON(r.Header) {
		if canonical, err := canonicalJSON(body); err == nil {
			kind, content = "json", canonical
		}
	}
	return idempotency.FingerprintOf(append(parts, []byte(kind), content)...)
}

// normalField is one text for the spellings of a field that mean the same. A
// media type has several (RFC 9110, section 8.3.1).
func normalField(name string, values []string) string {
	text := strings.Join(values, ", ")
	if strings.EqualFold(name, "Content-Type") {
		if mediaType, params, err := mime.ParseMediaType(text); err == nil {
			if charset, ok := params["charset"]; ok {
				params["charset"] = strings.ToLower(charset)
			}
			return cmp.Or(mime.FormatMediaType(mediaType, params), text)
		}
	}
	return text
}

// isJSON reports whether a body is JSON as it stands: by its media type, or by
// the suffix of one (RFC 6839, section 3.1), and not compressed.
func isJSON(h http.Header) bool {
	mediaType, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	return err == nil && h.Get("Content-Encoding") == "" &&
		(mediaType == "application/json" || strings.HasSuffix(mediaType, "+json"))
}
