package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// A page is what the README of a public module, or one of docs, tells its reader to
// do with Go.
type page struct {
	name    string
	gets    []string // the go get commands that fetch something of this repository
	tools   []string // the commands that run or install a program of it
	program string   // the first whole program or test after the first of gets
	output  string   // the text block that follows it, if there is one
}

// readPages reads the pages that have a go get of this repository, or a tool.
func (r *repository) readPages() (pages []page, err error) {
	names, err := filepath.Glob(filepath.Join(r.root, "docs", "*.md"))
	if err != nil {
		return nil, err
	}
	for _, m := range r.public() {
		names = append(names, filepath.Join(r.root, m.dir, "README.md"))
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if errors.Is(err, os.ErrNotExist) {
			continue // not every module has a README
		}
		if err != nil {
			return nil, err
		}
		relative, err := filepath.Rel(r.root, name)
		if err != nil {
			return nil, err
		}
		p := r.parsePage(filepath.ToSlash(relative), string(text))
		if len(p.gets) > 0 && p.program == "" {
			return nil, fmt.Errorf("%s: %s is followed by no program (package, imports and all)", p.name, p.gets[0])
		}
		if len(p.gets)+len(p.tools) > 0 {
			pages = append(pages, p)
		}
	}
	return pages, nil
}

var (
	fence  = regexp.MustCompile("(?ms)^```(\\w*)\n(.*?)^```$")
	inline = regexp.MustCompile("`(go (?:run|install) [^`\n]*)`")
)

func (r *repository) parsePage(name, text string) page {
	p := page{name: name}
	awaitsOutput := false
	for _, m := range fence.FindAllStringSubmatch(text, -1) {
		language, block := m[1], m[2]
		switch {
		case language == "sh":
			p.addCommands(r.path, strings.Split(block, "\n"))
		case language == "go" && len(p.gets) > 0 && p.program == "" && strings.HasPrefix(block, "package "):
			p.program, awaitsOutput = block, true
			continue
		case language == "text" && awaitsOutput:
			p.output = block
		}
		awaitsOutput = false
	}
	for _, m := range inline.FindAllStringSubmatch(text, -1) {
		p.addCommands(r.path, m[1:])
	}
	return p
}

// addCommands adds those among lines that need what is released.
func (p *page) addCommands(modulePath string, lines []string) {
	for _, line := range lines {
		words := strings.Fields(line)
		switch {
		case len(words) < 3 || words[0] != "go" || !strings.Contains(line, modulePath):
		case words[1] == "get":
			p.gets = append(p.gets, line)
		case (words[1] == "run" || words[1] == "install") && strings.Contains(line, "@"):
			p.tools = append(p.tools, line)
		}
	}
}
