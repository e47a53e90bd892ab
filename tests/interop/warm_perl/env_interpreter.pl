#!/usr/bin/env perl
use strict; use warnings; print "by env $0 ", $^X, "\n";
