package idemweb

import (
	"net/url"
	"regexp"
	"strings"
)

const (
	tracePlace  = "{trace}"
	originPlace = "{origin}"
)

// traceparent is the header field of W3C Trace Context, of which the second part is the id.
var traceparent = regexp.MustCompile(`^[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}$`)

// traceURL is the link for an origin, or no text. What is put in is escaped so that it stays
// one part of a path, or one value of a query: an origin can come from a client.
func traceURL(template, origin string) string {
	if template == "" || origin == "" {
		return ""
	}
	id := ""
	if m := traceparent.FindStringSubmatch(origin); m != nil {
		id = m[1]
	}
	if id == "" && strings.Contains(template, tracePlace) {
		return ""
	}
	return strings.NewReplacer(tracePlace, id, originPlace, escaped(origin)).Replace(template)
}

// escaped leaves neither a slash nor a dot segment.
func escaped(origin string) string {
	text := strings.ReplaceAll(url.QueryEscape(origin), "+", "%20")
	return strings.ReplaceAll(text, ".", "%2E")
}
