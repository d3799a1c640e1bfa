package main

import (
	"io"
	"os"
	"strings"
	"testing"
)

// A small repository with all that check looks at: a root module with a command, a
// nested module, and a page for each. It needs no network.
var small = map[string]string{
	"go.mod":  "module example.org/keys\n\ngo 1.26.0\n",
	"keys.go": "package keys\n\nconst Answer = \"yes\"\n",
	"cmd/keys/main.go": `package main

import (
	"fmt"
	"os"
	"runtime/debug"
)

func main() {
	info, _ := debug.ReadBuildInfo()
	fmt.Println("keys", info.Main.Version, os.Args[1:])
}
`,
	"keyhttp/go.mod": `module example.org/keys/keyhttp

go 1.26.0

require example.org/keys v0.1.0

replace example.org/keys => ..
`,
	"keyhttp/keyhttp.go": "package keyhttp\n\nimport \"example.org/keys\"\n\nconst Answer = keys.Answer\n",
	// Of these, a user sees nothing.
	"keyhttp/routertest/go.mod":    "module example.org/keys/keyhttp/routertest\n\ngo 1.26.0\n",
	"keyhttp/routertest/router.go": "package routertest\n",
	"internal/tool/go.mod":         "module example.org/keys/internal/tool\n\ngo 1.26.0\n",
	"internal/tool/tool.go":        "package tool\n",
	"keycheck/go.mod":              "module example.org/keys/keycheck\n\ngo 1.26.0\n",
	"keycheck/x_test.go":           "package keycheck\n",
	"README.md": "```sh\ngo get example.org/keys # this module\n```\n" +
		"```go\nkeys.Answer // a part of a program is none\n```\n" +
		"```go\n" + program("example.org/keys") + "```\nIt prints\n\n```text\nyes true\n```\n" +
		"`go run example.org/keys/cmd/keys@latest list` lists.\n",
	"docs/http.md":      "```sh\ngo get example.org/keys/keyhttp\n```\n```go\n" + program("example.org/keys/keyhttp") + "```\n```text\nyes true\n```\n",
	"keygrpc/go.mod":    "module example.org/keys/keygrpc\n\ngo 1.26.0\n",
	"keygrpc/grpc.go":   "package keygrpc\n\nconst Answer = \"grpc\"\n",
	"keygrpc/README.md": "```sh\ngo get example.org/keys/keygrpc\n```\n```go\n" + program("example.org/keys/keygrpc") + "```\n```text\ngrpc true\n```\n",
	"docs/other.md":     "Nothing to get.\n\n```go\npackage other\n```\n",
}

// program prints the answer of a package, and whether it has a database.
func program(imported string) string {
	name := imported[strings.LastIndex(imported, "/")+1:]
	return `package main

import (
	"fmt"
	"os"

	"` + imported + `"
)

func main() { fmt.Println(` + name + `.Answer, os.Getenv("DATABASE_URL") != "") }
`
}

// checkSmall checks the small repository, of which edit has changed a file.
func checkSmall(t *testing.T, file string, edit func(string) string) error {
	t.Helper()
	t.Setenv("GOPROXY", "file://"+t.TempDir()) // has nothing
	dir := t.TempDir()
	git(t, dir, "init", "--quiet")
	for name, text := range small {
		if name == file {
			text = edit(text)
		}
		if text != "" {
			write(t, dir, name, text)
		}
	}
	return check(t.Context(), dir, os.Getenv("DATABASE_URL"), io.Discard)
}

func TestWhatUsersWouldMeetIsFound(t *testing.T) {
	if os.Getenv("DATABASE_URL") == "" {
		t.Fatal("DATABASE_URL is not set: run `make test-modules`, which starts a PostgreSQL and sets it")
	}
	replace := func(old, new string) func(string) string {
		return func(text string) string {
			if !strings.Contains(text, old) {
				t.Fatalf("no %q in %s", old, text)
			}
			return strings.Replace(text, old, new, 1)
		}
	}
	for _, row := range []struct {
		name, file string
		edit       func(string) string
		says       string // nothing: all is well
	}{
		{"as it should be", "", nil, ""},
		{"a tool that is not there", "README.md", replace("cmd/keys@latest", "cmd/none@latest"), "cmd/none@latest"},
		{"a tool of a version that is not there", "README.md", replace("cmd/keys@latest", "cmd/keys@v0.3.0"), "v0.3.0"},
		{"a forgotten bump", "internal/tool/go.mod", replace("go 1.26.0\n", "go 1.26.0\n\nrequire example.org/keys v0.0.9\n"), "all have to require the same version"},
		{"a version that nobody released", "keyhttp/go.mod", replace("v0.1.0", "v0.0.0"), "which is no version to release"},
		{"a page that gets too little", "docs/http.md", replace("go get example.org/keys/keyhttp", "go get example.org/keys"), "no required module provides package example.org/keys/keyhttp"},
		{"a program that does not compile", "docs/http.md", replace("keyhttp.Answer", "keyhttp.Question"), "undefined: keyhttp.Question"},
		{"a program that vet refuses", "README.md", replace("func main() { ", "func main() { os.Args = os.Args; "), "go vet"},
		{"another output", "docs/http.md", replace("text\nyes", "text\nno"), "the page says\nno true"},
		{"a page without a program", "docs/http.md", replace("package main", "// package main"), "no program"},
		{"a module's own page with another output", "keygrpc/README.md", replace("text\ngrpc", "text\nno"), "keygrpc/README.md: the program prints"},
		{"a module without a page", "docs/http.md", func(string) string { return "" }, "go get example.org/keys/keyhttp"},
		{"a command without a version", "cmd/keys/main.go", replace("info.Main.Version", "info.Main.Path"), "-version prints"},
		{"a package that only the replace has", "keyhttp/keyhttp.go", replace("example.org/keys\"\n", "example.org/keys/keyhttp/routertest\"\n\nvar keys = struct{ Answer string }{}\n"), "routertest"},
		{"a replace of somebody else's module", "keyhttp/go.mod", replace("replace", "replace example.com/theirs => ../theirs\n\nreplace"), "its users ignore it"},
	} {
		t.Run(row.name, func(t *testing.T) {
			err := checkSmall(t, row.file, row.edit)
			switch {
			case row.says == "" && err != nil:
				t.Error(err)
			case row.says != "" && (err == nil || !strings.Contains(err.Error(), row.says)):
				t.Errorf("want %q, got %v", row.says, err)
			}
		})
	}
}
