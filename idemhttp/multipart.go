package idemhttp

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"mime/multipart"
	"slices"
	"strings"
)

// Beyond these, which are those of [http.Request.ParseMultipartForm] too, a
// multipart body is not looked into: for net/http each part and each header line
// of it is many times as large as in the body.
const (
	maxParts     = 1000
	maxPartLines = 10_000
)

var errNotMultipart = errors.New("idemhttp: not a multipart body, or one of too many parts")

// canonicalMultipart is what a multipart body (RFC 2046, section 5.1) says
// without its boundary, which clients make anew for each attempt: for each part
// the number of its header lines, those lines in the order of their names, and
// its bytes. What is around the parts is nobody's (section 5.1.1).
func canonicalMultipart(contentType string, body []byte) ([][]byte, error) {
	mediaType, params, err := parseMediaType(contentType)
	if err != nil || !isMultipart(mediaType) || params["boundary"] == "" {
		return nil, errNotMultipart
	}
	var parts [][]byte
	count, lineCount := 0, 0
	data := bytes.NewBuffer(make([]byte, 0, len(body)+bytes.MinRead)) // of all parts: never grows
	reader := multipart.NewReader(bytes.NewReader(body), params["boundary"])
	for {
		part, err := reader.NextRawPart()
		if err == io.EOF {
			return parts, nil
		}
		if err != nil {
			return nil, err
		}
		lines := headerLines(part.Header)
		count, lineCount = count+1, lineCount+len(lines)
		if count > maxParts || lineCount > maxPartLines {
			return nil, errNotMultipart
		}
		start := data.Len()
		if _, err := data.ReadFrom(part); err != nil {
			return nil, err
		}
		parts = append(parts, []byte{byte(len(lines) >> 8), byte(len(lines))})
		parts = append(append(parts, lines...), data.Bytes()[start:])
	}
}

func headerLines(h map[string][]string) (lines [][]byte) {
	for _, name := range slices.Sorted(maps.Keys(h)) {
		for _, value := range h[name] {
			line := make([]byte, 0, len(name)+2+len(value))
			lines = append(lines, append(append(append(line, name...), ": "...), value...))
		}
	}
	return lines
}

func isMultipart(mediaType string) bool { return strings.HasPrefix(mediaType, "multipart/") }
