#!/usr/bin/perl -w -l
print "line"; my $u; print "x$u"; print $^W;
