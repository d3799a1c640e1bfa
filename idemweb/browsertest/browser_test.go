package browsertest

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/pgidem/idempotency"
	"github.com/pgidem/idempotency/idemweb"
	"github.com/pgidem/idempotency/internal/pgtest"
)

// patience is for a browser on a busy machine.
const patience = time.Minute

// allocator has the options of the one browser of all tests.
var allocator context.Context

func TestMain(m *testing.M) {
	path, err := findChromium()
	if err != nil {
		fmt.Fprintln(os.Stderr, "browsertest: no chromium on this machine: install the package chromium, or name the program in CHROMIUM")
		os.Exit(1)
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path))
	if os.Geteuid() == 0 { // as whom it refuses its sandbox
		options = append(options, chromedp.NoSandbox)
	}
	all, cancelAll := chromedp.NewExecAllocator(context.Background(), options...)
	defer cancelAll()
	browser, cancel := chromedp.NewContext(all)
	defer cancel()
	if err := chromedp.Do(browser); err != nil {
		fmt.Fprintln(os.Stderr, "browsertest: chromium does not start:", err)
		os.Exit(1)
	}
	allocator = browser
	pgtest.Main(m)
}

func findChromium() (path string, err error) {
	names := []string{"chromium", "chromium-browser", "google-chrome"}
	if name := os.Getenv("CHROMIUM"); name != "" {
		names = []string{name}
	}
	for _, name := range names {
		if path, err = exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", err
}

func everybody(*http.Request) bool { return true }

var config = idemweb.Config{Delete: everybody, Results: everybody, Trace: "https://traces.example.com/trace/{trace}"}

// A tab is one of the browser, on the pages of a Store.
type tab struct {
	t   *testing.T
	ctx context.Context
	url string
}

// open serves the pages of a Store on pool, and opens the first one.
func open(t *testing.T, pool *pgxpool.Pool) tab {
	t.Helper()
	handler, err := idemweb.New(idempotency.New(pool), config)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	ctx, cancel := chromedp.NewContext(allocator, chromedp.WithNewBrowserContext())
	t.Cleanup(cancel)
	ctx, stop := context.WithTimeout(ctx, patience)
	t.Cleanup(stop)
	b := tab{t, ctx, server.URL + "/"}
	b.reads(t)
	b.visit("")
	return b
}

// reads fails the test for what the browser complains of: a violation of the policy, above
// all.
func (b tab) reads(t *testing.T) {
	t.Helper()
	complained := make(chan struct{})
	messages := chromedp.Console(b.ctx)
	go func() {
		defer close(complained)
		for m, err := range messages {
			if err != nil {
				return
			}
			t.Errorf("the browser says: %s", m)
		}
	}()
}

func (b tab) do(steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	if err := chromedp.Do(b.ctx, steps...); err != nil {
		b.t.Fatal(err)
	}
}

// goes runs steps that lead to another page, waits for it, and checks its status.
func (b tab) goes(status int64, steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	response, err := chromedp.RunResponse(b.ctx, steps...)
	if err != nil {
		b.t.Fatal(err)
	}
	if response.Status != status {
		b.t.Fatalf("status %d, want %d: %s", response.Status, status, b.text())
	}
}

func (b tab) visit(path string) { b.t.Helper(); b.goes(200, chromedp.Navigate(b.url+path)) }

// press clicks the first button that says text.
func (b tab) press(text string) {
	b.t.Helper()
	b.goes(200, chromedp.Click(chromedp.Search(`//button[contains(., "`+text+`")]`)))
}

// find fills in the form by the keyboard.
func (b tab) find(scope, id string) {
	b.t.Helper()
	b.do(chromedp.SendKeys(chromedp.CSS("#id"), id), chromedp.SendKeys(chromedp.CSS("#for"), scope))
	b.press("Find")
}

// eval is for what the tests want to know of a page. The page itself can run no script.
func eval[T any](b tab, expression string) T {
	b.t.Helper()
	value, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](expression))
	if err != nil {
		b.t.Fatal(err)
	}
	return value
}

func (b tab) text() string { b.t.Helper(); return eval[string](b, "document.body.innerText") }

func (b tab) want(texts ...string) {
	b.t.Helper()
	text := b.text()
	for _, want := range texts {
		if !strings.Contains(text, want) {
			b.t.Errorf("the page does not say %q: %s", want, text)
		}
	}
}

// looks sets the size of the window and the color scheme.
func (b tab) looks(width, height int64, scheme string) {
	b.t.Helper()
	b.do(chromedp.EmulateViewport(width, height))
	params := emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}}
	if _, err := chromedp.Call(b.ctx, emulation.SetEmulatedMedia, params); err != nil {
		b.t.Fatal(err)
	}
}
