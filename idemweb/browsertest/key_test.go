package browsertest

import (
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/pgidem/idempotency/internal/pgtest"
)

func TestKeyIsFoundAndDeletedAfterAQuestion(t *testing.T) {
	pool := pgtest.New(t)
	execute(t, pool, "customer-7", "order-1", map[string]string{"receipt": "10 EUR"})
	b := open(t, pool)
	b.find("", "order-1")
	b.want("Records of the key order-1", "customer-7", "Recorded")
	b.press("order-1")
	b.want("The call took effect, and a retry gets its result.", "Open the trace")
	if strings.Contains(b.text(), "10 EUR") {
		t.Error("the result is shown before anybody has asked for it")
	}
	b.press("Show the result")
	b.want(`"receipt": "10 EUR"`)
	b.press("Delete…")
	b.want("Delete this record?", "The next call with this key runs again.")
	b.press("Keep it")
	b.press("Delete…")
	b.press("Delete the record")
	b.want("Deleted", "The next call with this key runs again.")
	b.press("Look at the key")
	b.want("No call with this key has taken effect")
	var left int
	if err := pool.QueryRow(t.Context(), "select count(*) from idempotency_keys").Scan(&left); err != nil || left != 0 {
		t.Error(left, err)
	}
	if at := eval[string](b, "location.href"); strings.Contains(at, "order-1") || strings.Contains(at, "?") {
		t.Errorf("the key is in the URL: %s", at)
	}
}

func TestHostileKeyIsShownHarmlessAndReached(t *testing.T) {
	pool := pgtest.New(t)
	hostile := []string{
		`<script>document.title = 'owned'</script>`, `"><img src=x onerror="document.title='owned'">`, `</title><script>document.title='owned'</script>`,
		"invoice-\u202egpj.exe", "\u2066hidden\u2069", `\u0000 \x00`, "line\nreturn\rend\r\n", "tab\tbed", " spaces ", "אבג-1", strings.Repeat("😀", 63) + "é", strings.Repeat("W", 255),
	}
	b := open(t, pool)
	for _, id := range hostile {
		execute(t, pool, "s", id, map[string]string{id: id})
		b.visit("scope?scope=s")
		if strings.Contains(b.text(), "\u202e") || strings.Contains(b.text(), "\u2066") {
			t.Errorf("%q can turn the page around", id)
		}
		b.goes(200, chromedp.Click(chromedp.CSS("tbody button.link")))
		b.want("The call took effect")
		b.press("Show the result")
		if eval[bool](b, "document.title.includes('owned') || document.scripts.length + document.images.length > 0") {
			t.Errorf("%q has made something of the page", id)
		}
		if over := eval[int](b, "document.documentElement.scrollWidth - innerWidth"); over > 0 {
			t.Errorf("%q makes the page %d pixels too wide", id, over)
		}
		b.press("Delete…")
		b.press("Delete the record")
		b.want("Deleted")
		var left int
		if err := pool.QueryRow(t.Context(), "select count(*) from idempotency_keys").Scan(&left); err != nil || left != 0 {
			t.Fatalf("%q: %d records are left, %v", id, left, err)
		}
	}
}

func TestPageIsUsedByTheKeyboardAlone(t *testing.T) {
	pool := pgtest.New(t)
	execute(t, pool, "customer-7", "order-1", 1)
	b := open(t, pool)
	focused := func() string {
		return eval[string](b, "document.activeElement.innerText || document.activeElement.id")
	}
	b.do(chromedp.KeyEvent(kb.Tab))
	if at := focused(); at != "Skip to the content" || !eval[bool](b, "document.activeElement.getBoundingClientRect().left >= 0") {
		t.Errorf("the first stop is %q, or cannot be seen", at)
	}
	b.do(chromedp.KeyEvent(kb.Enter), chromedp.KeyEvent(kb.Tab))
	if at := focused(); at != "id" {
		t.Fatalf("behind the skip link comes %q", at)
	}
	b.do(chromedp.KeyEvent("order-1"))
	b.goes(200, chromedp.KeyEvent(kb.Enter))
	for range 20 {
		b.do(chromedp.KeyEvent(kb.Tab))
		if eval[string](b, "getComputedStyle(document.activeElement).outlineStyle") == "none" {
			t.Errorf("nobody sees that the focus is on %q", focused())
		}
		if focused() == "order-1" {
			b.goes(200, chromedp.KeyEvent(kb.Enter))
			b.want("The call took effect")
			return
		}
	}
	t.Error("no key leads to the record")
}
