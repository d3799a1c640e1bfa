package browsertest

import (
	"bytes"
	"flag"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
	"github.com/pgidem/idempotency/internal/pgtest"
)

var pictures = flag.String("pictures", "", "write a picture of each page into this `folder`")

// A view is a page in a state that is worth to be looked at.
type view struct {
	name string
	open func(tab)
}

var views = []view{
	{"overview", func(b tab) { b.visit("") }},
	{"find", func(b tab) { b.visit(""); b.find("", "charge/order-4711") }},
	{"key", func(b tab) { b.visit(""); b.find("customer-7", "charge/order-4711"); b.press("Show the result") }},
	{"key-in-flight", func(b tab) { b.visit(""); b.find("customer-7", "charge/order-4820") }},
	{"key-unfinished", func(b tab) { b.visit(""); b.find("rider-0", "ride-4713") }},
	{"key-abandoned", func(b tab) { b.visit(""); b.find("customer-3", "import/batch-9") }},
	{"in-flight", func(b tab) { b.visit("in-flight?refresh=0") }},
	{"unfinished", func(b tab) { b.visit("unfinished") }},
	{"scope", func(b tab) { b.visit("scope?scope=customer-3") }},
	{"health", func(b tab) { b.visit("health") }},
	{"delete", func(b tab) { b.visit(""); b.find("customer-7", "charge/order-4711"); b.press("Delete…") }},
}

// structure is what a screen reader needs.
const structure = `(() => {
	const wrong = [];
	const all = selector => [...document.querySelectorAll(selector)];
	if (document.documentElement.lang !== 'en') wrong.push('the language is not said');
	if (all('h1').length !== 1) wrong.push(all('h1').length + ' h1');
	for (const one of ['header', 'main', 'footer', 'nav[aria-label]', 'meta[name=viewport]', 'a.skip[href="#main"]'])
		if (all(one).length !== 1) wrong.push('no ' + one);
	if (all('nav a[aria-current=page]').length > 1) wrong.push('more than one current page');
	for (const e of all('input:not([type=hidden])')) if (!e.labels.length) wrong.push('no label: ' + e.outerHTML);
	for (const e of all('th')) if (!e.scope) wrong.push('no scope: ' + e.outerHTML);
	for (const e of all('table')) if (!e.closest('[role=region][aria-label], details, [aria-labelledby]')) wrong.push('a table without a name');
	for (const e of all('.table')) if (e.tabIndex !== 0) wrong.push('a table that the keyboard cannot scroll');
	for (const e of all('svg')) if (e.ariaHidden !== 'true' && !(e.role === 'img' && e.querySelector('title') && e.querySelector('desc'))) wrong.push('a picture without words');
	for (const e of all('section')) if (!document.getElementById(e.getAttribute('aria-labelledby'))) wrong.push('a section without a name');
	for (const e of all('button, a')) if (!e.innerText.trim()) wrong.push('nothing to read: ' + e.outerHTML);
	const ids = all('[id]').map(e => e.id);
	if (new Set(ids).size !== ids.length) wrong.push('an id twice: ' + ids);
	let level = 1;
	for (const e of all('main h1, main h2, main h3')) { const l = +e.tagName[1]; if (l > level + 1) wrong.push('a heading is left out'); level = l; }
	return wrong;
})()`

// contrast lists the texts that can hardly be read, by the formula of WCAG 2.
const contrast = `(() => {
	const rgb = color => color.match(/[\d.]+/g).map(Number);
	const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
	const behind = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
	const found = [];
	for (const e of document.querySelectorAll('body *')) {
		if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) || !e.getClientRects().length || e.closest('svg')) continue;
		const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))];
		const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
		if (ratio < 4.5) found.push(ratio.toFixed(2) + ' ' + e.outerHTML.slice(0, 120));
	}
	return found;
})()`

// On a phone and on a screen, by day and by night: nothing is cut off, all can be read, and
// a screen reader finds its way.
func TestEachPageIsReadByEverybody(t *testing.T) {
	pool := busy(t)
	b := open(t, pool)
	for _, v := range views {
		b.looks(1280, 900, "light")
		v.open(b)
		for _, width := range []int64{360, 1280} {
			for _, scheme := range []string{"light", "dark"} {
				b.looks(width, 900, scheme)
				b.isReadable(fmt.Sprintf("%s, %s, %d pixels", v.name, scheme, width), scheme)
			}
		}
	}
}

func (b tab) isReadable(where, scheme string) {
	b.t.Helper()
	if over := eval[int](b, "document.documentElement.scrollWidth - innerWidth"); over > 0 {
		b.t.Errorf("%s: %d pixels are cut off", where, over)
	}
	for _, wrong := range append(eval[[]string](b, structure), eval[[]string](b, contrast)...) {
		b.t.Errorf("%s: %s", where, wrong)
	}
	if background := eval[string](b, "getComputedStyle(document.body).backgroundColor"); (background == "rgb(247, 248, 250)") != (scheme == "light") {
		b.t.Errorf("%s: the page is %s", where, background)
	}
}

func TestRefreshComesByItselfAndCanBeStopped(t *testing.T) {
	pool := pgtest.New(t)
	b := open(t, pool)
	b.goes(200, chromedp.Click(chromedp.Search(`//nav//a[text()="In flight"]`)))
	b.want("Refreshes every 5 seconds.", "No key is in flight.")
	hold(t, pool, "customer-7", "order-1")
	// No click and no call: the browser loads the page again by itself.
	_, err := chromedp.Run(b.ctx, chromedp.WaitEvent(page.LoadEventFired, func(page.EventLoadEventFired) bool { return true }, chromedp.Title()))
	if err != nil {
		t.Fatal(err)
	}
	b.want("1 key in 1 transaction.")
	b.goes(200, chromedp.Click(chromedp.Search(`//a[text()="Stop refreshing"]`)))
	if eval[int](b, "document.querySelectorAll('meta[http-equiv=refresh]').length") != 0 {
		t.Error("it refreshes all the same")
	}
	b.goes(200, chromedp.Click(chromedp.Search(`//a[text()="Refresh every 5 seconds"]`)))
	b.want("Refreshes every 5 seconds.")
}

// These keep the repository small.
const (
	maxPicture = 150_000 // bytes
	maxHeight  = 1400    // pixels
)

// smaller is the same picture in its 256 most frequent colors.
func smaller(t *testing.T, picture []byte) []byte {
	t.Helper()
	img, err := png.Decode(bytes.NewReader(picture))
	if err != nil {
		t.Fatal(err)
	}
	count := make(map[color.Color]int)
	for y := range img.Bounds().Dy() {
		for x := range img.Bounds().Dx() {
			count[img.At(x, y)]++
		}
	}
	palette := slices.SortedFunc(maps.Keys(count), func(a, b color.Color) int { return count[b] - count[a] })
	small := image.NewPaletted(img.Bounds(), color.Palette(palette[:min(len(palette), 256)]))
	draw.Draw(small, small.Rect, img, image.Point{}, draw.Src)
	var b bytes.Buffer
	encoder := png.Encoder{CompressionLevel: png.BestCompression}
	if err := encoder.Encode(&b, small); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Pictures for the docs: go test -run Pictures . -pictures ../../docs/web
func TestPicturesOfThePages(t *testing.T) {
	if *pictures == "" {
		t.Skip("-pictures names the folder to write them into")
	}
	b := open(t, busy(t))
	take := func(name string, v view, width int64, scheme string) {
		b.looks(width, 600, scheme)
		v.open(b)
		b.looks(width, min(maxHeight, eval[int64](b, "document.body.scrollHeight")), scheme)
		eval[int](b, "document.activeElement.blur(), scrollTo(0, 0), 0")
		picture, err := chromedp.Run(b.ctx, chromedp.CaptureScreenshot())
		if err != nil {
			t.Fatal(err)
		}
		if picture = smaller(t, picture); len(picture) > maxPicture {
			t.Errorf("%s: %d bytes", name, len(picture))
		}
		if err := os.WriteFile(filepath.Join(*pictures, name+".png"), picture, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, v := range views {
		take(v.name, v, 1100, "light")
		if v.name == "overview" || strings.HasPrefix(v.name, "key-un") {
			take(v.name+"-dark", v, 1100, "dark")
			take(v.name+"-phone", v, 390, "light")
		}
	}
}
