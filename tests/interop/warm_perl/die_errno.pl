#!/usr/bin/perl
open my $f, '<', '/nonexistent/file' or die "cannot open: $!\n";
