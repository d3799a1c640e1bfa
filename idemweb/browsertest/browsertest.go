// Package browsertest opens the pages of package idemweb in a real browser. It is a module
// of its own, so that nobody else needs what drives the browser.
package browsertest
