#!/usr/bin/perl
# ignore-stderr-time
use strict; use CGI::Carp qw(fatalsToBrowser);
warn "a warning\n";
die "a fatal error\n";
