#!/usr/bin/perl
require "./lib/settings.pl";
do "./lib/settings.pl";
print "$setting\n";
eval { require Not::There } or print "not there: ", $@ =~ /^(Can't locate Not\/There.pm in \@INC)/, "\n";
