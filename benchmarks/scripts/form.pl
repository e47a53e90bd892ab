#!/usr/bin/perl
use strict;
use warnings;
use CGI;

my $q = CGI->new;
my $name = $q->escapeHTML(scalar $q->param('name') // 'world');
print $q->header(-type => 'text/html', -charset => 'utf-8');
print "<!DOCTYPE html>\n<title>Form</title>\n<p>Hello, $name!\n";
print $q->start_form(-action => ''), $q->textfield('name'), $q->submit, $q->end_form;
