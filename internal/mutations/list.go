package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A list is one file of testdata. Blank lines separate its blocks. The first block says
// which package it breaks, and which packages' tests have to notice (by default its own):
//
//	package internal/keytable
//	tests internal/keytable migrations
//
// Each further block is a mutation: the file, the old text, the new text, and the verdict.
// The old text has to be in the file once, or else the first line says after which text
// it comes first:
//
//	trust.go after func trusts(
//	- owner == ""
//	+ owner != ""
//	= killed by migrations.TestTableOfAStrangerIsRefused
//
// A verdict is "killed by" or "hangs", with a test, or "survives:" or "equivalent:", with a
// reason. Before there is one, a line with "? " can name the test that is expected to kill,
// which is then tried first. Lines with "# " are comments. A text of several lines has several "- " lines.
type list struct {
	name   string // of the file, without ".txt"
	folder string // of the package, from the top of the repository
	tests  []string
	blocks []*block
}

// A block is a mutation, or a head or comment that is none.
type block struct {
	lines    []string
	at       int // number of its first line
	mutation *mutation
}

// A mutation replaces text in one file.
type mutation struct {
	file     string // from the folder of its list
	after    string
	old, new string
	verdict  string
	expected string // the test that is tried first
}

const (
	killed     = "killed by " // and the test that fails
	hangs      = "hangs "     // and the test that does not end
	survives   = "survives: "
	equivalent = "equivalent: "
)

// killer returns the test that a verdict names, and its package where that is said.
func killer(verdict string) (test, folder string, ok bool) {
	name, isKill := strings.CutPrefix(verdict, killed)
	if !isKill {
		if name, isKill = strings.CutPrefix(verdict, hangs); !isKill {
			return "", "", false
		}
	}
	dot := strings.LastIndex(name, ".")
	return name[dot+1:], name[:max(dot, 0)], name != ""
}

func readList(path string) (*list, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	l, err := parseList(strings.TrimSuffix(filepath.Base(path), ".txt"), string(text))
	if err != nil {
		return nil, fmt.Errorf("%s:%w", path, err)
	}
	return l, nil
}

func parseList(name, text string) (*list, error) {
	l := &list{name: name}
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	for i := 0; i < len(lines); i++ {
		if lines[i] == "" {
			continue
		}
		b := &block{at: i + 1}
		for ; i < len(lines) && lines[i] != ""; i++ {
			b.lines = append(b.lines, lines[i])
		}
		if err := l.add(b); err != nil {
			return nil, fmt.Errorf("%d: %w", b.at, err)
		}
	}
	if l.folder == "" {
		return nil, errors.New("1: the list names no package")
	}
	if l.tests == nil {
		l.tests = []string{l.folder}
	}
	return l, nil
}

func (l *list) add(b *block) error {
	var m mutation
	var old, replacement []string
	for _, line := range b.lines {
		switch mark, rest, _ := strings.Cut(line, " "); mark {
		case "#":
		case "package":
			l.folder = rest
		case "tests":
			l.tests = strings.Fields(rest)
		case "-":
			old = append(old, rest)
		case "+":
			replacement = append(replacement, rest)
		case "=":
			m.verdict = rest
		case "?":
			m.expected = rest
		default:
			if m.file != "" {
				return fmt.Errorf("%q begins with none of # - + = ?", line)
			}
			m.file, m.after, _ = strings.Cut(line, " after ")
		}
	}
	m.old, m.new = strings.Join(old, "\n"), strings.Join(replacement, "\n")
	known := slices.ContainsFunc([]string{killed, hangs, survives, equivalent}, func(kind string) bool { return strings.HasPrefix(m.verdict, kind) })
	switch {
	case m.file == "" && m.old == "":
	case m.file == "" || m.old == "" || m.old == m.new:
		return errors.New("a mutation needs a file, an old text, and a new one that is another")
	case m.verdict != "" && !known:
		return fmt.Errorf("%q is no verdict", m.verdict)
	default:
		b.mutation = &m
	}
	l.blocks = append(l.blocks, b)
	return nil
}

// record writes the verdict into the block of a mutation.
func (b *block) record(verdict string) {
	b.mutation.verdict = verdict
	b.lines = slices.DeleteFunc(b.lines, func(line string) bool {
		return strings.HasPrefix(line, "= ") || strings.HasPrefix(line, "? ")
	})
	b.lines = append(b.lines, "= "+verdict)
}

// String is the text of the list's file.
func (l *list) String() string {
	var blocks []string
	for _, b := range l.blocks {
		blocks = append(blocks, strings.Join(b.lines, "\n")+"\n")
	}
	return strings.Join(blocks, "\n")
}

// An edit is a mutation at its place.
type edit struct {
	path       string // from the top of the repository
	start, end int    // bytes of the file
	text       string
	says       string // what it does, on one line
}

// find looks for the place of a mutation in the text of its file.
func (m *mutation) find(path, source string) (edit, error) {
	from := strings.Index(source, m.after)
	if from < 0 {
		return edit{}, fmt.Errorf("%q is not there", m.after)
	}
	n := strings.Count(source[from:], m.old)
	if n == 0 || n > 1 && m.after == "" {
		return edit{}, fmt.Errorf("%q is there %d times, want once", m.old, n)
	}
	start := from + strings.Index(source[from:], m.old)
	return edit{path, start, start + len(m.old), m.new, oneLine(m.old) + " -> " + cmp.Or(oneLine(m.new), "nothing")}, nil
}

// apply returns the text of the file with the edit.
func (e edit) apply(source []byte) []byte {
	return slices.Concat(source[:e.start], []byte(e.text), source[e.end:])
}

// oneLine is text with its white space as single spaces.
func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }
