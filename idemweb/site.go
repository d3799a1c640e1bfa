package idemweb

import (
	"bytes"
	"embed"
	"html/template"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
)

// A page is what stands at one path.
type page struct {
	path    string // its last part
	name    string // in the navigation; none: it is not there
	methods []string
	show    func(*request) (answer, error)
}

var (
	reads = []string{http.MethodGet, http.MethodHead}
	both  = []string{http.MethodGet, http.MethodHead, http.MethodPost}
	posts = []string{http.MethodPost}
)

// pages are in the order of the navigation.
var pages = []page{
	{"", "Overview", reads, overview},
	{"key", "Find a key", both, findKey},
	{"in-flight", "In flight", reads, inFlight},
	{"unfinished", "Unfinished", reads, unfinished},
	{"scope", "A scope’s keys", both, scopeKeys},
	{"health", "Health", reads, health},
	{"delete", "", posts, deleteKey},
}

// A request is one for a page.
type request struct {
	*http.Request
	*site
	form url.Values // of a POST, its body's; else the query's
}

// An answer is a template and what it shows.
type answer struct {
	template string
	title    string
	status   int
	refresh  int // seconds; 0: never
	data     any
}

// maxForm is more than two keys of 255 bytes and a cursor have, escaped.
const maxForm = 16 << 10

func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "" { // stripped of all: relative links need the slash
		http.Redirect(w, r, "./"+url.PathEscape(path.Base(r.RequestURI))+"/", http.StatusTemporaryRedirect)
		return
	}
	name := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
	if name == styleName {
		s.style(w, r)
		return
	}
	i := slices.IndexFunc(pages, func(p page) bool { return p.path == name })
	if i < 0 {
		s.write(w, r, nowhere, failure(http.StatusNotFound, "There is no such page", "The navigation above leads to those that are there."))
		return
	}
	p := pages[i]
	if !slices.Contains(p.methods, r.Method) {
		w.Header().Set("Allow", strings.Join(p.methods, ", "))
		s.write(w, r, nowhere, failure(http.StatusMethodNotAllowed, "This page cannot be asked for like that", "It takes "+strings.Join(p.methods, ", ")+"."))
		return
	}
	s.write(w, r, p.path, s.answer(w, r, p))
}

func (s *site) answer(w http.ResponseWriter, r *http.Request, p page) answer {
	req := &request{Request: r, site: s, form: r.URL.Query()}
	if r.Method == http.MethodPost {
		r.Body = http.MaxBytesReader(w, r.Body, maxForm)
		if err := r.ParseForm(); err != nil {
			return failure(http.StatusBadRequest, "The form cannot be read", "It is larger than this page’s forms are, or was cut off.")
		}
		req.form = r.PostForm
	}
	a, err := p.show(req)
	if err != nil {
		return explain(r.Context(), err)
	}
	return a
}

// nowhere is the path of no page.
const nowhere = "-"

func failure(status int, title, text string) answer {
	return answer{template: "failure", title: title, status: status, data: text}
}

func (s *site) refuseOrigin(w http.ResponseWriter, r *http.Request) {
	s.write(w, r, nowhere, failure(http.StatusForbidden, "The form came from another site", "Nothing was done. Open this page itself, and send the form from there."))
}

// guarded sets the header fields of every response.
func guarded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", contentSecurityPolicy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		// Not no-referrer: with it, browsers send Origin: null with a form, and where the page
		// is reached without TLS nothing else tells it from one of another site.
		h.Set("Referrer-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		h.Set("X-Robots-Tag", "noindex")
		next.ServeHTTP(w, r)
	})
}

// contentSecurityPolicy lets the browser load the style sheet, and nothing else: there is no
// script.
const contentSecurityPolicy = "default-src 'none'; style-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"

//go:embed pages
var files embed.FS

const styleName = "style.css"

func (s *site) style(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "private, max-age=300")
	http.ServeFileFS(w, r, files, "pages/"+styleName)
}

// templates are each page's, with the layout around it.
var templates = parse()

func parse() map[string]*template.Template {
	layout := template.Must(template.New("layout.html").Funcs(words).ParseFS(files, "pages/layout.html", "pages/parts.html"))
	names, err := files.ReadDir("pages")
	if err != nil {
		panic(err) // they are embedded
	}
	all := make(map[string]*template.Template)
	for _, file := range names {
		name, isPage := strings.CutSuffix(file.Name(), ".html")
		if isPage && name != "layout" && name != "parts" {
			all[name] = template.Must(template.Must(layout.Clone()).ParseFS(files, "pages/"+file.Name()))
		}
	}
	return all
}

// A frame is what the layout shows around a page.
type frame struct {
	Title   string
	Current string // the Path of this page
	Pages   []page
	Refresh int
	Data    any
}

// A refreshing is the line about it.
type refreshing struct {
	Refresh bool
	Seconds int64
	Every   int // that is offered
}

func (f frame) RefreshOr(every int) refreshing {
	return refreshing{f.Refresh > 0, int64(f.Refresh), every}
}

// Path is relative, so that the site can be mounted anywhere.
func (p page) Path() string {
	if p.path == "" {
		return "./"
	}
	return p.path
}

func (p page) Name() string { return p.name }

// write sends a whole page or none.
func (s *site) write(w http.ResponseWriter, r *http.Request, path string, a answer) {
	f := frame{Title: a.title, Current: page{path: path}.Path(), Refresh: a.refresh, Data: a.data}
	for _, p := range pages {
		if p.name != "" {
			f.Pages = append(f.Pages, p)
		}
	}
	var b bytes.Buffer
	if err := templates[a.template].ExecuteTemplate(&b, "layout.html", f); err != nil {
		http.Error(w, "the page cannot be made", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(max(a.status, http.StatusOK))
	_, _ = w.Write(b.Bytes()) // nobody is left to be told
}

func (s *site) mayDelete(r *http.Request) bool { return s.cfg.Delete != nil && s.cfg.Delete(r) }

func (s *site) maySee(r *http.Request) bool { return s.cfg.Results != nil && s.cfg.Results(r) }
